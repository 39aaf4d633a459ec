"""The table of ``routing_table``, continued: audio models, codecs, and models of text with images or sound."""

from __future__ import annotations

from typing import Any

from routing_table import View, _enter, blocks, equal

# ---- queries, keys and values in one layer ----

# self.qkv(x).reshape(seq_length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0): the three come first
_enter(
    "CohereCompassVisionAttention Qwen3VLVisionAttention Qwen3VLMoeVisionAttention Qwen3_5VisionAttention "
    "Qwen3_5MoeVisionAttention Qwen3OmniMoeVisionAttention Qwen4ExpVisionAttention Qwen2_5_VLVisionAttention "
    "VisionAttention Dots3NoteVisionAttention Ernie4_5_VLMoeVisionAttention Glm4vVisionAttention "
    "Glm4vMoeVisionAttention Glm5NextVisionAttention GlmOcrVisionAttention",
    "qkv.weight",
    "attention",
    equal(3),
)
# mixed_qkv.reshape(bsz, tgt_len, 3, self.num_heads, embed_dim // self.num_heads)
_enter("InstructBlipAttention InstructBlipVideoAttention", "qkv.weight", "attention", equal(3))
# qkv.reshape(batch_size, height * width, 3, self.num_attention_heads, -1)
_enter(
    "DeepseekOcr2SamVisionSdpaAttention UnlimitedOcrSamVisionSdpaAttention PPFormulaNetVisionAttention",
    "qkv.weight",
    "attention",
    equal(3),
)
# qkv.reshape(batch * windows, tokens, 3, heads, head_dim); by channels: (batch_size, num_tokens, 3, groups, -1)
_enter("Florence2VisionWindowAttention Florence2VisionChannelAttention", "qkv.weight", "attention", equal(3))
# self.qkv(x).split([num_heads * head_dim, num_key_value_heads * head_dim, num_key_value_heads * head_dim], dim=-1)
_enter(
    "Exaone4_5_VisionAttention",
    "qkv.weight",
    "attention",
    lambda m, s: blocks(m.num_heads * m.head_dim, *[(s[0] - m.num_heads * m.head_dim) // 2] * 2),
)
# query, key, value = self.att_proj(hidden_states).split(self.embed_dim, dim=2)
_enter("BarkSelfAttention", "att_proj.weight", "attention", equal(3))
# k, v = self.to_kv(kv_input).chunk(2, dim=-1)
_enter("EvollaSequenceCompressorAttention", "to_kv.weight", "attention", equal(2))
# F.linear into (…, 2, 4), .sum(-1): four rows make gate_a, four make gate_b
_enter("WavLMAttention", "gru_rel_pos_linear.weight", "attention", equal(2))
# softmax(q_proj(x) @ k_proj(x)) @ v_proj(x): attention in a class of another name
for _name in ("q_proj", "k_proj", "v_proj", "out_proj"):
    _enter("Emu3VQVAEAttentionBlock", f"{_name}.weight", "attention", "matrix")

_LATENT = "Glm5NextTextAttention Mistral4Attention MistralLarge4TextAttention"
# torch.split(compressed_kv, [self.kv_lora_rank, self.qk_rope_head_dim], dim=-1); no rotary key where that is 0
_enter(
    _LATENT,
    "kv_a_proj_with_mqa.weight",
    "attention",
    lambda m, s: blocks(m.kv_lora_rank, m.qk_rope_head_dim) if m.qk_rope_head_dim else "matrix",
)
# k_nope, value_states = torch.split(kv_nope, [self.qk_nope_head_dim, self.v_head_dim], dim=-1), in each head
_enter(
    _LATENT,
    "kv_b_proj.weight",
    "attention",
    lambda m, s: f"heads({s[0] // (m.qk_nope_head_dim + m.v_head_dim)}) {blocks(m.qk_nope_head_dim, m.v_head_dim)}",
)
# gate_scores = F.linear(hidden_states, self.index_kpool_compress_gate); the other is added at each place of a pool
_enter("Glm5NextTextIndexer", "index_kpool_compress_gate", "attention", "matrix")
_enter("Glm5NextTextIndexer", "index_kpool_compress_ape", "vector", "vector")

# ---- gates beside what they gate ----

# gate, up_states = up_states.chunk(2, dim=-1)
_enter("Dots3NoteAudioMLP Glm4vTextMLP GlmOcrTextMLP DiaMLP", "gate_up_proj.weight", "mlp_in", equal(2))
# hidden_states, gate = self.fc1(x).chunk(2, dim=-1); .view(batch, seq, 2, -1): act([..., 0, :]) * [..., 1, :]
_enter("MoonshineDecoderMLP MoonshineStreamingDecoderMLP KyutaiSpeechToTextGatingMLP", "fc1.weight", "mlp_in", equal(2))
# x, gate = self.linear_1(image_features).chunk(2, dim=-1)
_enter("AyaVisionMultiModalProjector Cohere2VisionMultiModalProjector", "linear_1.weight", "hidden", equal(2))
# input_gate, output_gate, conv_input = self.in_proj(hidden_states).chunk(3, dim=-1)
_enter("Lfm3VlVisionShortConv", "in_proj.weight", "hidden", equal(3))
# nn.functional.glu(self.pointwise_lin1(x), dim=-1)
_enter("GraniteSpeech5EncoderConvolutionModule", "pointwise_lin1.weight", "hidden", equal(2))


def flat(count: int) -> View:
    """A kernel as a matrix, its output channels cut into this many equal blocks."""
    return lambda m, s: f"flatten {blocks(*[s[0] // count] * count)}"


# self.glu(self.pointwise_conv1(x)) with nn.GLU(dim=1), nn.functional.glu(x, dim=1)
_enter(
    "SeamlessM4TConformerConvolutionModule SeamlessM4Tv2ConformerConvolutionModule Wav2Vec2BertConvolutionModule "
    "Wav2Vec2ConformerConvolutionModule ParakeetEncoderConvolutionModule LasrEncoderConvolutionModule "
    "FastSpeech2ConformerConvolutionModule",
    "pointwise_conv1.weight",
    "conv",
    flat(2),
)
# self.activation(self.residual_conv(residual)) with nn.GLU(dim=1)
for _name in ("residual_conv", "self_attn_conv"):
    _enter(
        "SeamlessM4TConformerAdapterLayer SeamlessM4Tv2ConformerAdapterLayer Wav2Vec2BertAdapterLayer",
        f"{_name}.weight",
        "conv",
        flat(2),
    )
# nn.functional.glu(self.conv(hidden_states), dim=1)
_enter("Wav2Vec2AdapterLayer", "conv.weight", "conv", flat(2))
# for conv in self.conv_layers: nn.functional.glu(conv(x), dim=1)
_enter("Conv1dSubsampler", "conv_layers.#.weight", "conv", flat(2))
# fused_add_tanh_sigmoid_multiply: tanh(in_act[:, :channels]) * sigmoid(in_act[:, channels:])
_enter("VitsWaveNet", "in_layers.#.weight", "conv", flat(2))
# res_skip_acts[:, : self.hidden_size], res_skip_acts[:, self.hidden_size :]; the last layer skips only
_enter(
    "VitsWaveNet",
    "res_skip_layers.#.weight",
    "conv",
    lambda m, s: flat(s[0] // m.hidden_size)(m, s) if s[0] > m.hidden_size else "flatten",
)
# global_conditioning[:, offset : offset + 2 * hidden_size] for each layer, with a tanh half and a sigmoid half
_enter(
    "VitsWaveNet",
    "cond_layer.weight",
    "conv",
    lambda m, s: f"flatten heads({m.num_layers}) {blocks(m.hidden_size, m.hidden_size)} join",
)
# torch.split(stats, self.config.flow_size, dim=2): means and log variances
_enter("VitsTextEncoder", "project.weight", "conv", flat(2))
# mean, log_stddev = torch.split(stats, self.out_channels, dim=1)
_enter("VitsPosteriorEncoder", "conv_proj.weight", "conv", flat(2))
# .reshape(batch, channels, -1, length): [..., :num_bins], [..., num_bins : 2 * num_bins], [..., 2 * num_bins :]
_enter(
    "VitsConvFlow",
    "conv_proj.weight",
    "conv",
    lambda m, s: (
        "flatten "
        + (f"heads({m.half_channels}) " if m.half_channels > 1 else "")
        + blocks(m.num_bins, m.num_bins, m.num_bins - 1)
    ),
)
# torch.chunk(self.linear(x), 6, dim=1), torch.chunk(self.linear(x), 2, dim=1): shifts, scales and gates
_enter("Qwen2_5_OmniAdaLayerNormZero", "linear.weight", "hidden", equal(6))
_enter("Qwen2_5_OmniAdaLayerNormZero_Final", "linear.weight", "hidden", equal(2))
# self.linear(self.act_fn(condition)).chunk(self.num_chunks, dim=-1), self.linear_1(...), self.adaln_proj(...)
for _classes, _name in (
    ("VibeVoiceDiffusionHeadAdaLayerNorm", "linear"),
    ("VibeVoiceDiffusionHeadFinalLayer", "linear_1"),
    ("PocketTTSFlowResBlock PocketTTSFlowFinalLayer", "adaln_proj"),
    ("GradiumPhononTTSFlowResBlock GradiumPhononTTSFlowFinalLayer", "adaln_proj"),
):
    _enter(_classes, f"{_name}.weight", "hidden", lambda m, s: equal(m.num_chunks)(m, s))


def _gates(m: Any, s: tuple[int, ...]) -> str:
    return blocks(*[m.hidden_size] * (s[0] // m.hidden_size))


# torch's LSTM: input, forget, cell and output gate in the rows of both
for _name in ("weight_ih_l#", "weight_hh_l#"):
    _enter("LSTM", _name, "hidden", _gates)
# flattened.split([hc, hc, hc * hc], dim=-1) of F.linear(flattened, self.fn)
_enter("Glm5NextTextHyperConnection", "fn", "hidden", lambda m, s: blocks(m.hc_mult, m.hc_mult, m.hc_mult * m.hc_mult))

# ---- mlps and experts ----

_EXPERTS = (
    "DeepseekOcr2TextExperts DiffusionGemmaTextExperts Ernie4_5_VLMoeMoeExperts Glm4vMoeTextExperts Mistral4Experts "
    "MistralLarge4TextExperts MuseSparkExperts Qwen3OmniMoeThinkerTextExperts Qwen3OmniMoeTalkerTextExperts "
    "Qwen3VLMoeTextExperts UnlimitedOcrTextExperts Step3p7Experts Glm5NextTextExperts"
)
# gate, up = nn.functional.linear(current_state, self.gate_up_proj[expert_idx]).chunk(2, dim=-1)
_enter(_EXPERTS, "gate_up_proj", "expert_in", equal(2))
# nn.functional.linear(current_hidden_states, self.down_proj[expert_idx])
_enter(_EXPERTS, "down_proj", "expert_out", "matrix")
# self.out_proj(self.gelu(self.in_proj(x))), x + down_proj(act_fn(gate_proj(x)) * up_proj(x)), and others alike
for _classes, _in, _out in (
    ("BarkMLP", "in_proj", "out_proj"),
    ("IdeficsMLP", "fc", "c_proj"),
    ("Wav2Vec2AttnAdapterLayer", "linear_1", "linear_2"),
    ("DiTMLP", "ff.0", "ff.3"),
    ("PI0ActionTimeEmbedding", "action_time_mlp_in", "action_time_mlp_out"),
    ("Qwen3OmniMoeConvNeXtBlock", "pwconv1", "pwconv2"),
    # after attention in windows: residual + self.linear_2(self.act(self.linear_1(self.pre_norm(hidden_states))))
    (
        "MiniCPMOcrViTWindowAttentionMerger MiniCPMV4_6ViTWindowAttentionMerger MiniCPMV4_7ViTWindowAttentionMerger",
        "linear_1",
        "linear_2",
    ),
    ("DiffusionGemmaSelfConditioning", "gate_proj up_proj", "down_proj"),
    (
        "Glm4vVisionPatchMerger Glm4vMoeVisionPatchMerger Glm5NextVisionPatchMerger GlmOcrVisionPatchMerger",
        "gate_proj up_proj",
        "down_proj",
    ),
):
    for _name in _in.split():
        _enter(_classes, f"{_name}.weight", "mlp_in", "matrix")
    _enter(_classes, f"{_out}.weight", "mlp_out", "matrix")
# one layer, from the width of the images to that of the text
_enter("Idefics3SimpleMLP SmolVLMSimpleMLP", "proj.weight", "hidden", "matrix")
# fc1, then activation and layer as often as the config says: a projector between towers
for _name in ("fc1.weight", "hidden_layers.#.weight"):
    _enter("JanusVisionAlignerMLP JanusVQVAEAlignerMLP", _name, "hidden", "matrix")
# self.act(self.fc2(self.act(self.fc1(x)))), self.fc2(self.activation(self.fc1(self.norm(x)))): projectors as well
for _name in ("fc1.weight", "fc2.weight"):
    _enter("MuseGlimmerVisionAdapter MuseSparkVisionAdapter Dots3NoteAudioAdapter", _name, "hidden", "matrix")
# fc2(act_fn(fc1(sinusoids of the time)))
for _name in ("fc1.weight", "fc2.weight"):
    _enter("PocketTTSTimestepEmbedding GradiumPhononTTSTimestepEmbedding", _name, "hidden", "matrix")

# ---- logits ----

# logits = self.classifier(pooled_output)
_enter(
    "Data2VecAudioForSequenceClassification HubertForSequenceClassification SEWForSequenceClassification "
    "SEWDForSequenceClassification UniSpeechForSequenceClassification UniSpeechSatForSequenceClassification "
    "Wav2Vec2ForSequenceClassification Wav2Vec2BertForSequenceClassification "
    "Wav2Vec2ConformerForSequenceClassification WavLMForSequenceClassification WhisperForAudioClassification",
    "classifier.weight",
    "lm_head",
    "matrix",
)
# torch.cat((F.linear(input, self.weight), self.additional_fc(input)), -1): tokens that were added to the vocabulary
_enter("IdeficsDecoupledLinear", "additional_fc.weight", "lm_head", "matrix")
# self.dense(self.layernorm(hidden_state)): the classes
_enter("ASTMLPHead", "dense.weight", "lm_head", "matrix")
# logits = self.ctc_head(encoder_outputs.last_hidden_state.transpose(1, 2)), a convolution of width 1
_enter("LasrForCTC ParakeetForCTC", "ctc_head.weight", "lm_head", "flatten")
# out_mid(softmax(self.out(x))): logits of CTC's vocabulary, and back from them
_enter("GraniteSpeech5Encoder", "out.weight", "lm_head", "matrix")
# logits = self.logits_dense(last_hidden_state).view(batch, -1, num_channels, vocab_size), cross entropy for each
_enter("DiaForConditionalGeneration", "logits_dense.weight", "lm_head", "matrix")
# logits = self.audio_lm_head(hidden_states)
_enter("HiggsAudioV2ForConditionalGeneration", "audio_lm_head.weight", "lm_head", "matrix")
# logits = self.codec_head(hidden_states)
_enter(
    "Qwen2_5OmniTalkerForConditionalGeneration Qwen3OmniMoeTalkerForConditionalGeneration",
    "codec_head.weight",
    "lm_head",
    "matrix",
)
# logits = self.lm_head[generation_steps](hidden_states)
_enter("Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration", "lm_head.#.weight", "lm_head", "matrix")
# nn.functional.linear(hidden_states[:, codebook_idx, :], codebook_weight[codebook_idx].T): stored (in, out)
_enter("CsmCodebooksHead", "weight", "lm_head", "transpose")
# hidden_states = self.vision_head(activation_fn(self.proj_out(x))): logits of the images' tokens
_enter("JanusVQVAEHead", "vision_head.weight", "lm_head", "matrix")
# prob_token = softmax(head_norm(head_linear(x))), of visual words, which a table turns into features
_enter("Ovis2VisionModel", "head_linear.weight", "lm_head", "matrix")

# predicted_velocity = self.action_out_proj(last_hidden_states): no logits, and neither accessor nor name says so
_enter("PI0ForConditionalGeneration", "action_out_proj.weight", "unknown", "matrix")

# ---- positions ----

_PLACES = {
    # embeddings + self.position_embedding, hidden_states + self.pos_embed
    "InstructBlipVisionEmbeddings InstructBlipVideoVisionEmbeddings RadioPatchEmbeddings": "position_embedding",
    "InternVLVisionEmbeddings QianfanOCRVisionEmbeddings ASTEmbeddings "
    "Kimi_K25VisionPositionEmbeddings": "position_embeddings",
    "DeepseekOcr2SamVisionEncoder UnlimitedOcrSamVisionEncoder PPFormulaNetVisionModel": "pos_embed",
    "Gemma4VisionPatchEmbedder": "position_embedding_table",
    "Llama4VisionModel": "positional_embedding_vlm",
    "Molmo2VisionModel": "positional_embedding",
    "Granite4VisionWindowQFormerDownsampler": "image_positions",
    # (1 - gate) * self.embedding of the patches, and for each aspect ratio the places of all tiles' patches
    "MllamaPrecomputedPositionEmbedding": "embedding tile_embedding.weight",
    "MllamaPrecomputedAspectRatioEmbedding": "embedding.weight",
    # rel_pos_resized[relative_coords.long()]
    "SamVisionAttention DeepseekOcr2SamVisionSdpaAttention UnlimitedOcrSamVisionSdpaAttention "
    "PPFormulaNetVisionAttention": "rel_pos_h rel_pos_w",
    # self.pos_embed(interp_indices), self.position_embedding_table of places in a grid
    "CohereCompassVisionModel Qwen3VLVisionModel Qwen3VLMoeVisionModel Qwen3_5VisionModel Qwen3_5MoeVisionModel "
    "Qwen3OmniMoeVisionEncoder Qwen4ExpVisionModel": "pos_embed.weight",
    # self.row_embedder(row_indices)
    "Kosmos2_5VisionEmbeddings Pix2StructVisionEmbeddings": "row_embedder.weight column_embedder.weight",
    "Florence2VisionLearnedAbsolutePositionEmbedding2D": "row_embeddings.weight column_embeddings.weight",
    # self.pos_emb(position_ids)
    "CohereAsrDecoder MoonshineStreamingDecoder": "pos_emb.weight",
    # lookups of distances
    "WavLMAttention": "rel_attn_embed.weight",
    "Wav2Vec2BertSelfAttention SeamlessM4Tv2ConformerSelfAttention": "distance_embedding.weight",
    "SpeechT5RelativePositionalEncoding": "pe_k.weight",
    # key_relative_embeddings of distances in a window
    "VitsAttention": "emb_rel_k emb_rel_v",
}
for _classes, _names in _PLACES.items():
    for _name in _names.split():
        _enter(_classes, _name, "vector", "vector")

# ---- learned tokens, and biases of another name ----

_TOKENS = {
    # self.query, self.latents, self.latent_query attend to the features
    "AriaProjector": "query",
    "EvollaSequenceCompressorResampler IdeficsPerceiverResampler Idefics2PerceiverResampler": "latents",
    "Kosmos2ImageToTextProjection Kosmos2_5ImageToTextProjection": "latent_query",
    "Blip2ForConditionalGeneration InstructBlipForConditionalGeneration "
    "InstructBlipVideoForConditionalGeneration": "query_tokens",
    "RadioPatchEmbeddings": "cls_register_token",
    # self.query_768_resolution.weight, whole
    "DeepseekOcr2VisionModel": "query_768_resolution.weight query_1024_resolution.weight",
    # one token for the beginning and one for the end
    "Qwen2_5OmniAudioEncoder": "audio_bos_eos_token.weight",
    # query_states + self.bias_u
    "ParakeetEncoderAttention LasrEncoderAttention": "bias_u bias_v",
    "SeamlessM4TConformerSelfAttention Wav2Vec2ConformerSelfAttention Wav2Vec2BertSelfAttention "
    "FastSpeech2ConformerAttention": "pos_bias_u pos_bias_v",
}
for _classes, _names in _TOKENS.items():
    for _name in _names.split():
        _enter(_classes, _name, "vector", "vector")
