"""The table of ``routing_table``, continued: what is fused, raw or a learned token in vision models."""

from __future__ import annotations

from routing_table import _enter, blocks, equal

# ---- attention ----

# qkv.reshape(batch_size, tokens_per_window, num_windows, 3, self.num_heads, self.head_dim): the three come first.
_enter("HieraMaskUnitAttention", "qkv.weight", "attention", equal(3))
# mixed_qkv = self.qkv(hidden_states).reshape(bsz, tgt_len, 3, self.num_heads, embed_dim // self.num_heads)
_enter("BlipAttention Blip2Attention", "qkv.weight", "attention", equal(3))
# self.qkv(hidden_states).reshape(batch_size, height * width, 3, self.num_attention_heads, -1)
_enter(
    "SamVisionSdpaAttention SamVisionAttention SamHQVisionSdpaAttention SamHQVisionAttention Sam2MultiScaleAttention",
    "qkv.weight",
    "attention",
    equal(3),
)
# query, key, value = self.c_attn(current_states).split(self.split_size, dim=2), of a Conv1D
_enter("ImageGPTAttention", "c_attn.weight", "attention", lambda m, s: f"transpose {blocks(*[m.split_size] * 3)}")
# .view(*, self.num_attention_heads, -1).split([self.key_dim, self.key_dim, self.attention_ratio * self.key_dim], dim=3)
_enter(
    "LevitAttention",
    "queries_keys_values.linear.weight",
    "attention",
    lambda m, s: f"heads({m.num_attention_heads}) {blocks(m.key_dim, m.key_dim, m.attention_ratio * m.key_dim)}",
)
# .view(*, self.num_attention_heads, -1).split([self.key_dim, self.attention_ratio * self.key_dim], dim=3)
_enter(
    "LevitAttentionSubsample",
    "keys_values.linear.weight",
    "attention",
    lambda m, s: f"heads({m.num_attention_heads}) {blocks(m.key_dim, m.attention_ratio * m.key_dim)}",
)
for _name in ("queries", "projection"):
    _enter("LevitAttentionSubsample", f"{_name}.linear.weight", "attention", "matrix")
# self.dense(hidden_states) of the attention's outputs
_enter("NeighborhoodAttentionOutput", "dense.weight", "attention", "matrix")
# query_layer = self.q_proj(self.pooling_attention_query), key_states = self.k_proj(hidden_states), ...
for _name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    _enter("VideoPrismMultiheadAttentionPoolingHead", f"{_name}.weight", "attention", "matrix")
# torch.matmul(query * self.scaling, key.transpose(1, 2)): a map of attention, without values
for _name in ("q_proj", "k_proj"):
    _enter("DetrMHAttentionMap", f"{_name}.weight", "attention", "matrix")
# queries, keys = torch.unbind(self.dense(inputs).reshape(batch, length, 2, self.head_size), dim=2); queries @ keys.T
_enter("PPDocLayoutV2GlobalPointer PPDocLayoutV3GlobalPointer", "dense.weight", "attention", equal(2))
# (queries @ keys.transpose(-2, -1)) * self.scaling
for _name in ("q_proj", "k_proj"):
    _enter("PPDocLayoutV4GlobalPointer", f"{_name}.weight", "attention", "matrix")

# ---- mlps and mixers ----

# self.pwconv2(self.grn(self.act(self.pwconv1(features)))), nn.Linear over channels
for _name, _role in (("pwconv1", "mlp_in"), ("pwconv2", "mlp_out")):
    _enter("ConvNextLayer ConvNextV2Layer", f"{_name}.weight", _role, "matrix")
# hidden_state = self.linear_down(self.activation(self.linear_up(hidden_state)))
for _name, _role in (("linear_up", "mlp_in"), ("linear_down", "mlp_out")):
    _enter("LevitMLPLayer", f"{_name}.linear.weight", _role, "matrix")
# q, ctx, gates = torch.split(x, (num_channels, num_channels, self.focal_level + 1), 1)
_enter("FocalNetModulation", "projection_in.weight", "hidden", lambda m, s: blocks(m.dim, m.dim, m.focal_level + 1))
# nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads)): from coordinates to biases, it does not return
for _number in ("0", "2"):
    _enter("Swinv2SelfAttention", f"continuous_position_bias_mlp.{_number}.weight", "hidden", "matrix")
# hidden_states = self.proj(hidden_states), one layer of that name
_enter("SegformerMLP", "proj.weight", "hidden", "matrix")
# self.linear2(self.dropout(self.activation(self.linear1(output))))
for _name, _role in (("linear1", "mlp_in"), ("linear2", "mlp_out")):
    _enter(
        "OneFormerTransformerDecoderFFNLayer OneFormerTransformerDecoderQueryTransformerDecoderLayer "
        "OmDetTurboMLPWithDropout OmDetTurboDeformableTransformerDecoderLayer",
        f"{_name}.weight",
        _role,
        "matrix",
    )
# query_embed, target = torch.split(self.pos_trans_norm(self.pos_trans(...)), num_channels, dim=2)
_enter("DeformableDetrModel", "pos_trans.weight", "hidden", equal(2))
# max_pooled_output @ self.text_projection: stored (in, out)
_enter("OmDetTurboLanguageBackbone", "text_projection", "hidden", "transpose")
# gate1, gate2 = torch.sigmoid(self.gate(gate_input)).chunk(2, dim=-1); gate1 * residual + gate2 * hidden_states
_enter("DFineGate Deimv2Gate", "gate.weight", "hidden", equal(2))

# ---- tables of positions, learned tokens and queries ----

# embeddings + self.position_embeddings, also interpolated to the size of the image
_enter(
    "BeitEmbeddings DeiTEmbeddings Dinov2Embeddings Dinov2WithRegistersEmbeddings HieraEmbeddings IJepaEmbeddings "
    "PvtPatchEmbeddings ViTEmbeddings ViTMSNEmbeddings LwDetrViTEmbeddings RfDetrDinov2Embeddings YolosEmbeddings "
    "DPTViTEmbeddings DPTViTHybridEmbeddings Tipsv2VisionEmbeddings VideoPrismSpatialEmbeddings "
    "VideoPrismTemporalEmbeddings SwinEmbeddings Data2VecVisionEmbeddings Sam3ViTEmbeddings",
    "position_embeddings",
    "vector",
    "vector",
)
_enter("BlipVisionEmbeddings Blip2VisionEmbeddings", "position_embedding", "vector", "vector")
# interpolated, split by layers and added: hidden_states + interpolated_mid_position_embeddings[i]
_enter("InterpolateMidPositionEmbeddings", "mid_position_embeddings", "vector", "vector")
# relative_position_bias_table[relative_position_index.view(-1)]: a row for each distance
_enter(
    "BeitRelativePositionBias Data2VecVisionRelativePositionBias SwinRelativePositionBias DonutSwinSelfAttention "
    "MaskFormerSwinSelfAttention",
    "relative_position_bias_table",
    "vector",
    "vector",
)
# hidden_state = inputs_embeds + self.positional_embedding
_enter("OneFormerTextEncoder", "positional_embedding", "vector", "vector")
# text_queries_ctx = self.prompt_ctx.weight.unsqueeze(0).repeat(batch, 1, 1), put beside the texts
_enter("OneFormerTextMapper", "prompt_ctx.weight", "vector", "vector")
# hidden_states + self.pos_embed; pos_embed + window_embed.tile(...)
_enter("SamVisionEncoder SamHQVisionEncoder Sam2HieraDetModel", "pos_embed", "vector", "vector")
_enter("Sam2HieraDetModel", "pos_embed_window", "vector", "vector")
# rel_pos_resized[relative_coords.long()]
for _name in ("rel_pos_h", "rel_pos_w"):
    _enter("SamVisionSdpaAttention SamHQVisionSdpaAttention", _name, "vector", "vector")
# coordinates @ self.positional_embedding, then sin and cos: frequencies of the two axes of places
_enter("SamPositionalEmbedding SamHQPositionalEmbedding", "positional_embedding", "vector", "vector")
# output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight], dim=0)
_enter(
    "SamMaskDecoder SamHQMaskDecoder Sam2MaskDecoder Sam3TrackerMaskDecoder", "mask_tokens.weight", "vector", "vector"
)
# natten2dqkrpb(query, key, self.rpb, ...): a bias for each distance and head
_enter("NeighborhoodAttention", "rpb", "vector", "vector")
# self.rel_pos_bias.weight.t()[rel_pos], a column for each distance; those of x and y are made alike and not used
for _name in ("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"):
    _enter("PPDocLayoutV2ReadingOrderEncoder", f"{_name}.weight", "vector", "vector")
# self.register_tokens.expand(batch_size, -1, -1)
_enter(
    "Dinov2WithRegistersEmbeddings Sapiens2Embeddings EomtEmbeddings EomtDinov3Embeddings VideomtEmbeddings "
    "DINOv3ViTEmbeddings Tipsv2VisionEmbeddings",
    "register_tokens",
    "vector",
    "vector",
)
_enter("YolosEmbeddings", "detection_tokens", "vector", "vector")
# query_tokens = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
_enter("Blip2ForImageTextRetrieval", "query_tokens", "vector", "vector")
# pos_embed + self.level_embed[level].view(1, 1, -1): one learned vector for each level
_enter(
    "DeformableDetrModel GroundingDinoModel MMGroundingDinoModel Mask2FormerPixelDecoder OneFormerPixelDecoder",
    "level_embed",
    "vector",
    "vector",
)
_enter("Mask2FormerTransformerModule OneFormerTransformerModule", "level_embed.weight", "vector", "vector")
# self.query_refpoint_embeddings.weight.unsqueeze(0).repeat(batch_size, 1, 1): learned queries, whatever the input
_enter("DabDetrModel", "query_refpoint_embeddings.weight", "vector", "vector")
# self.patterns.weight[:, None, None, :].repeat(...): learned patterns of queries
_enter("DabDetrModel", "patterns.weight", "vector", "vector")
# reference_points = self.reference_point_embed.weight; query_feat = self.query_feat.weight
for _name in ("reference_point_embed", "query_feat"):
    _enter("LwDetrModel RfDetrModel", f"{_name}.weight", "vector", "vector")
# self.queries_embedder.weight.unsqueeze(1).repeat(1, batch_size, 1)
_enter(
    "Mask2FormerTransformerModule MaskFormerTransformerModule OneFormerTransformerModule",
    "queries_embedder.weight",
    "vector",
    "vector",
)
_enter("Mask2FormerTransformerModule", "queries_features.weight", "vector", "vector")
# query = self.query.weight[None, :, :].expand(hidden_states.shape[0], -1, -1)
_enter(
    "EomtForUniversalSegmentation EomtDinov3ForUniversalSegmentation VideomtForUniversalSegmentation",
    "query.weight",
    "vector",
    "vector",
)
