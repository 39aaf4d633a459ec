"""The table of ``routing_table``, continued: what is fused or raw in vision models, and what makes their logits."""

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

# ---- what makes logits ----

# logits = self.classifier(pooled_output)
_enter(
    "BeitForImageClassification CLIPForImageClassification ConvNextForImageClassification "
    "ConvNextV2ForImageClassification CvtForImageClassification Data2VecVisionForImageClassification "
    "DeiTForImageClassification DinatForImageClassification Dinov2ForImageClassification "
    "Dinov2WithRegistersForImageClassification DonutSwinForImageClassification EfficientNetForImageClassification "
    "FocalNetForImageClassification HieraForImageClassification IJepaForImageClassification "
    "MetaClip2ForImageClassification MobileNetV1ForImageClassification MobileNetV2ForImageClassification "
    "MobileViTForImageClassification MobileViTV2ForImageClassification PoolFormerForImageClassification "
    "PvtForImageClassification PvtV2ForImageClassification SegformerForImageClassification "
    "SiglipForImageClassification Siglip2ForImageClassification SwinForImageClassification "
    "Swinv2ForImageClassification ViTForImageClassification ViTMSNForImageClassification",
    "classifier.weight",
    "lm_head",
    "matrix",
)
# logits = self.classifier(pooled_output), nn.Sequential(nn.Flatten(), nn.Linear(...))
_enter(
    "BitForImageClassification RegNetForImageClassification ResNetForImageClassification",
    "classifier.1.weight",
    "lm_head",
    "matrix",
)
# logits = self.fc(last_hidden_state)
_enter("HGNetV2ForImageClassification TextNetForImageClassification", "fc.weight", "lm_head", "matrix")
# logits = self.score(pooled_hidden_states)
_enter("ImageGPTForImageClassification", "score.weight", "lm_head", "matrix")
# logits = self.linear(hidden_state)
_enter("LevitClassificationLayer", "linear.weight", "lm_head", "matrix")
# logits = self.final_layer(output)
_enter("PerceiverBasicDecoder", "final_layer.weight", "lm_head", "matrix")
# logits = self.head(hidden_state); (cls_out + distillation_out) / 2
_enter("PPLCNetForImageClassification SwiftFormerForImageClassification", "head.weight", "lm_head", "matrix")
_enter("SwiftFormerForImageClassification", "dist_head.weight", "lm_head", "matrix")
# output = self.itm_head(query_embeds): whether image and text match
_enter("Blip2ForImageTextRetrieval", "itm_head.weight", "lm_head", "matrix")

# logits = self.class_labels_classifier(sequence_output)
_enter(
    "ConditionalDetrForObjectDetection DetrForObjectDetection TableTransformerForObjectDetection",
    "class_labels_classifier.weight",
    "lm_head",
    "matrix",
)
# YolosMLPPredictionHead(..., output_dim=config.num_labels + 1, num_layers=3): logits after the last of three
_enter("YolosForObjectDetection", "class_labels_classifier.layers.2.weight", "lm_head", "matrix")
# logits = self.class_embed(hidden_states)
_enter(
    "DabDetrForObjectDetection LwDetrForObjectDetection RfDetrForObjectDetection PPDocLayoutV3Decoder "
    "OneFormerTransformerDecoder",
    "class_embed.weight",
    "lm_head",
    "matrix",
)
# scores = self.class_embed[i](hidden_states), one for each layer
for _number in range(3):
    _enter(
        "DeformableDetrForObjectDetection DeformableDetrDecoder DFineDecoder Deimv2Decoder PPDocLayoutV2Decoder "
        "PPDocLayoutV4Decoder RTDetrDecoder RTDetrV2Decoder",
        f"class_embed.{_number}.weight",
        "lm_head",
        "matrix",
    )
# enc_outputs_class = self.enc_out_class_embed[i](object_query_undetach), one for each group of queries
for _number in range(13):
    _enter("LwDetrModel RfDetrModel", f"enc_out_class_embed.{_number}.weight", "lm_head", "matrix")
# enc_outputs_class = self.enc_score_head(output_memory): the proposals' classes
_enter(
    "DFineModel Deimv2Model PPDocLayoutV2Model PPDocLayoutV3Model PPDocLayoutV4Model RTDetrModel RTDetrV2Model",
    "enc_score_head.weight",
    "lm_head",
    "matrix",
)
# class_logits = self.class_predictor(query_tokens)
_enter(
    "EomtForUniversalSegmentation EomtDinov3ForUniversalSegmentation VideomtForUniversalSegmentation "
    "Mask2FormerForUniversalSegmentation MaskFormerForInstanceSegmentation",
    "class_predictor.weight",
    "lm_head",
    "matrix",
)

# output = self.classifier(output): nn.Conv2d(channels, config.num_labels, kernel_size=1)
_enter(
    "BeitUperHead BeitFCNHead Data2VecVisionUperHead Data2VecVisionFCNHead SegformerDecodeHead UperNetHead "
    "UperNetFCNHead",
    "classifier.weight",
    "lm_head",
    "flatten",
)
# MobileViTConvLayer(config, ..., out_channels=config.num_labels, kernel_size=1, use_activation=False)
_enter(
    "MobileNetV2DeepLabV3Plus MobileViTDeepLabV3 MobileViTV2DeepLabV3",
    "classifier.convolution.weight",
    "lm_head",
    "flatten",
)
# nn.Conv2d(features, config.num_labels, kernel_size=1), the last but one of the head's list
_enter("DPTSemanticSegmentationHead DPTAuxiliaryHead", "head.4.weight", "lm_head", "flatten")
# return self.predictor(hidden_states)
_enter("Sapiens2Head", "predictor.weight", "lm_head", "flatten")
# hidden_state = self.head(hidden_state): classes, and depth_logits of bins
_enter("Tipsv2DptDecoder", "head.weight", "lm_head", "matrix")
# "Converts raw logits from the CHMv2 head into a depth map using depth bins"
_enter("CHMv2UpsampleConvHead", "head.4.weight", "lm_head", "flatten")

# output = self.dense2(output) makes boxes, last in the model, in a head that is not called so: nothing can tell
_enter("OwlViTForObjectDetection", "box_head.dense2.weight", "unknown", "matrix")
