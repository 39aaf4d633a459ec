"""The table of ``routing_table``, continued: state spaces, linear attention, recurrences, residual streams, towers."""

from __future__ import annotations

from typing import Any

from routing_table import _enter, blocks, equal

# ---- state spaces ----

# hidden_states_B_C, gate = projected_states.chunk(2, dim=1), after transpose(1, 2)
_enter("MambaMixer FalconMambaMixer JambaMambaMixer", "in_proj.weight", "hidden", equal(2))
# time_step, B, C = torch.split(ssm_parameters, [self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1)
_enter(
    "MambaMixer FalconMambaMixer JambaMambaMixer",
    "x_proj.weight",
    "hidden",
    lambda m, s: blocks(m.time_step_rank, m.ssm_state_size, m.ssm_state_size),
)
# projected_states.view(batch_size, -1, 2, seq_len).chunk(2, dim=2): x and gate alternate row by row
_enter("ZambaMambaMixer", "in_proj.weight", "hidden", "interleave(2)")
# self.x_proj_weight[:, None] @ hidden_states_B_C, a matrix (dt_rank + 2 * states, head_dim) for each head, then split
_enter(
    "ZambaMambaMixer",
    "x_proj_weight",
    "hidden",
    lambda m, s: blocks(m.time_step_rank, m.ssm_state_size, m.ssm_state_size),
)
# self.dt_proj_weight[:, None] @ time_step.transpose(-1, -2)
_enter("ZambaMambaMixer", "dt_proj_weight", "hidden", "matrix")


def _mamba_2(m: Any, s: tuple[int, ...]) -> str:
    states = m.n_groups * m.ssm_state_size
    return blocks(m.intermediate_size, m.intermediate_size, states, states, m.num_heads)


# gate, hidden_states_B_C, dt = projected_states.split([intermediate_size, conv_dim, num_heads], dim=-1) and
# hidden_states, B, C = torch.split(hidden_states_B_C, [intermediate_size, n_groups * state, n_groups * state], dim=-1)
_enter(
    "Mamba2Mixer BambaMixer FalconH1Mixer GraniteMoeHybridMambaLayer NemotronHMamba2Mixer Zamba2MambaMixer",
    "in_proj.weight",
    "hidden",
    _mamba_2,
)

# ---- linear attention and short convolutions ----

# query, key, value = torch.split(mixed_qkv, [self.key_dim, self.key_dim, self.value_dim], dim=-1)
_enter(
    "Qwen3_5GatedDeltaNet Qwen3_5MoeGatedDeltaNet Qwen4ExpTextGatedDeltaNet",
    "in_proj_qkv.weight",
    "hidden",
    lambda m, s: blocks(m.key_dim, m.key_dim, m.value_dim),
)


def _qkvz(m: Any, s: tuple[int, ...]) -> str:
    values = m.num_v_heads // m.num_k_heads * m.head_v_dim
    return f"heads({m.num_k_heads}) {blocks(m.head_k_dim, m.head_k_dim, values, values)}"


# mixed_qkvz.view(*, num_k_heads, ...); query, key, value, z = torch.split(mixed_qkvz, split_arg_list_qkvz, dim=3)
_enter("Qwen3NextGatedDeltaNet", "in_proj_qkvz.weight", "hidden", _qkvz)
# mixed_ba.view(*, num_k_heads, 2 * num_v_heads // num_k_heads); b, a = torch.split(mixed_ba, split_arg_list_ba, dim=3)
_enter(
    "Qwen3NextGatedDeltaNet",
    "in_proj_ba.weight",
    "hidden",
    lambda m, s: f"heads({m.num_k_heads}) {blocks(*[m.num_v_heads // m.num_k_heads] * 2)}",
)
# B, C, x = self.in_proj(hidden_states).transpose(-1, -2).chunk(3, dim=-2)
_enter("Lfm2ShortConv Lfm2MoeShortConv Lfm3ShortConv", "in_proj.weight", "hidden", equal(3))
# query, key, value, o_preact = torch.tensor_split(qkv_opreact, (qk_dim, 2 * qk_dim, 2 * qk_dim + v_dim), dim=-1)
_enter("xLSTMLayer", "qkv_opreact.weight", "hidden", lambda m, s: blocks(m.qk_dim, m.qk_dim, m.v_dim, m.v_dim))
# i_preact, f_preact = torch.tensor_split(if_preact, (self.config.num_heads,), dim=-1)
_enter("xLSTMLayer", "ifgate_preact.weight", "hidden", equal(2))
# gate, z = torch.tensor_split(x, (self.up_proj_dim,), dim=-1)
_enter("xLSTMFeedForward", "proj_up_gate_z.weight", "mlp_in", equal(2))
# self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) beside experts that are rows of two lookup tables
for _name, _role in (
    ("gate_proj", "mlp_in"),
    ("up_proj", "mlp_in"),
    ("down_proj", "mlp_out"),
    ("router_gate", "router"),
):
    _enter("DogeCDMoE", f"{_name}.weight", _role, "matrix")
# torch.baddbmm(bias, reshape_act, self.input_gate_weight): a block of features times (in, out), block by block
for _name in ("input_gate_weight", "recurrent_gate_weight"):
    _enter("RecurrentGemmaRglru", _name, "hidden", "transpose")
# weights = self.static_weight.float().T.view(heads, -1, kernel) + dynamic: one filter for each channel
_enter("Inkling2DynamicShortConvolution", "static_weight", "vector", "vector")

# ---- residual streams ----

# F.linear(flattened, self.fn).split([hc, hc, hc * hc], dim=-1)
_enter(
    "DeepseekV4HyperConnection",
    "fn",
    "hidden",
    lambda m, s: blocks(m.hc_mult, m.hc_mult, m.hc_mult * m.hc_mult),
)
# mixes = F.linear(flat, self.fn); pre_logits, post_logits = mixes.split(self.hc_mult, dim=-1)
_enter("HYV4HyperConnection", "fn", "hidden", lambda m, s: blocks(m.hc_mult, m.hc_mult))
# mixes = F.linear(flat, self.hc_fn)
_enter("DeepseekV4HyperHead HYV4HyperHead", "hc_fn", "hidden", "matrix")
# chunk_gate.view(batch, n_windows, ratio, -1) + self.position_bias
_enter("DeepseekV4CSACompressor DeepseekV4HCACompressor DeepseekV4Indexer", "position_bias", "vector", "vector")
# self.query.view(-1, hidden_size) attends to the residual blocks: learned tokens
_enter("Inkling2BlockAttentionResidual", "query", "vector", "vector")
# hidden_states.float() * self.scale.float()
_enter("Inkling2ScaledL2Clip", "scale", "vector", "vector")
# routed = self.modality_router(router_inputs): it weighs the residual streams, and chooses none
_enter("Gemma3nTextAltUp", "modality_router.weight", "hidden", "matrix")

# ---- tables, tokens and towers ----

# F.embedding(relative_position_bucket, self.relative_attention_bias), in a raw parameter
_enter("CpmAntSegmentPositionEmbedding", "relative_attention_bias", "vector", "vector")
# bias_values of distances
_enter("Phi4MultimodalAudioRelativeAttentionBias", "bias_values.weight", "vector", "vector")
# ngram_embeddings = self.ngram_embeddings.weight, one learned token for each predicting stream, added to positions
_enter("ProphetNetDecoder", "ngram_embeddings.weight", "vector", "vector")
# weight.expand(...) by axis, concatenated: a table of positions
_enter("AxialPositionEmbeddings", "weights.0", "vector", "vector")
_enter("AxialPositionEmbeddings", "weights.1", "vector", "vector")
# rel_pos_resized[relative_coords.long()]
_enter("GotOcr2VisionAttention", "rel_pos_h", "vector", "vector")
_enter("GotOcr2VisionAttention", "rel_pos_w", "vector", "vector")
_enter("GotOcr2VisionEncoder", "pos_embed", "vector", "vector")  # hidden_states + self.pos_embed
# einsum("ibnd,snd->ibns", q_head + self.r_s_bias, self.seg_embed): a learned token for each of two segments
_enter("XLNetRelativeAttention FunnelRelMultiheadAttention", "seg_embed", "vector", "vector")
# self.embed_global(torch.arange(num_global_tokens)): learned tokens, whatever the input
_enter("PegasusXEncoder", "embed_global.weight", "vector", "vector")
# Perceiver: latents that attend to the input, and a table of positions
_enter("PerceiverEmbeddings", "latents", "vector", "vector")
_enter("PerceiverTrainablePositionEncoding", "position_embeddings", "vector", "vector")
# torch.matmul(hidden_states, embedding_layer.weight.transpose(0, 1)) makes the logits
_enter("PerceiverTextPreprocessor", "embeddings.weight", "tied_embedding", "matrix")
# the speakers' logits, and those of the aligner's classes
_enter("Nemotron3DiarizationClassificationHead", "out_proj.weight", "lm_head", "matrix")
_enter("Nemotron3_5TranscribeForConditionalGeneration", "word_timestamp_head.weight", "lm_head", "flatten")
# x = self.output_projection(x) makes the logits
_enter("FSMTDecoder", "output_projection.weight", "lm_head", "matrix")
# hidden_states.matmul(torch.cat([self.decoder.weight.t(), self.dense.weight], dim=0)): the rest of a head, (in, out)
_enter("MobileBertLMPredictionHead", "dense.weight", "lm_head", "transpose")
# self.dense(hidden_states), from the width of the layer to that of the stream
_enter("OutputBottleneck", "dense.weight", "hidden", "matrix")
# self.qformer(query_embeds=self.query): learned tokens
_enter("GraniteSpeechEncoderProjector GraniteSpeechPlusEncoderProjector", "query", "vector", "vector")
# out_mid(softmax(self.out(x))): logits of CTC's vocabulary, and back from them
_enter("GraniteSpeechCTCEncoder GraniteSpeechPlusCTCEncoder", "out.weight", "lm_head", "matrix")
# torch.matmul(normed_vision_outputs, self.mm_input_projection_weight): stored (in, out)
_enter("Gemma3MultiModalProjector T5Gemma2MultiModalProjector", "mm_input_projection_weight", "hidden", "transpose")
# nn.MultiheadAttention: F.multi_head_attention_forward, in_proj_weight.chunk(3)
_enter("MultiheadAttention", "in_proj_weight", "attention", equal(3))
