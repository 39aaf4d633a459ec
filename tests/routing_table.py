"""What is fused, transposed, interleaved or raw in transformers' layers: read, class by class, in their forward passes.

``TABLE[class][path]`` is the role and the view of the parameter at that path inside a module of that class. A role of
"" leaves the role to the rules; a view is made from the module ``m`` of that class and the parameter's shape ``s``.
The comment above an entry quotes the line of the modelling file that shows it (transformers 5.23).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

View = Callable[[nn.Module, tuple[int, ...]], str]
Entry = tuple[str, View]

TABLE: dict[str, dict[str, Entry]] = {}


def _enter(classes: str, path: str, role: str, view: View | str) -> None:
    made = view if callable(view) else (lambda m, s: view)
    for name in classes.split():
        assert path not in TABLE.setdefault(name, {}), f"{name} {path} stands twice in the table"
        TABLE[name][path] = role, made


def blocks(*sizes: int) -> str:
    """The view that cuts rows into blocks of these sizes."""
    return f"split({','.join(map(str, sizes))})"


def equal(count: int, axis: int = -2) -> View:
    """Rows cut into this many equal blocks."""
    return lambda m, s: blocks(*[s[axis] // count] * count)


def per_head(heads: Callable[[Any], int], count: int) -> View:
    """In each head's rows, this many equal blocks."""
    return lambda m, s: f"heads({heads(m)}) {blocks(*[s[0] // heads(m) // count] * count)}"


# ---- queries, keys and values in one layer ----

# x.split(self.split_size, dim=2) of a Conv1D's output: q, k, v, and only k, v in GPT-2's cross attention; Conv1D
# multiplies by its weight, stored (in, out).
_enter(
    "GPT2Attention Attention",
    "c_attn.weight",
    "attention",
    lambda m, s: f"transpose {blocks(*[m.split_size] * (s[1] // m.split_size))}",
)
# multi_query: .split((self.embed_dim, self.kv_dim, self.kv_dim), dim=3); nn.Linear in spite of its name.
# otherwise: .view(*, self.num_heads, 3 * self.head_dim) and .split(3 * [self.head_dim], dim=3).
_enter(
    "GPTBigCodeAttention",
    "c_attn.weight",
    "attention",
    lambda m, s: (
        blocks(m.embed_dim, m.kv_dim, m.kv_dim)
        if m.multi_query
        else f"heads({m.num_heads}) {blocks(*[m.head_dim] * 3)}"
    ),
)
# mixed_qkv.chunk(3, dim=2)
_enter("MptAttention", "Wqkv.weight", "attention", equal(3))
# qkv.view(*input_shape, 3, -1, self.head_dim).unbind(dim=-3)
_enter("ModernBertAttention", "Wqkv.weight", "attention", equal(3))
# self.transpose_for_scores(qp).chunk(3, dim=-1), of (heads, 3 * head_dim)
_enter("DisentangledSelfAttention", "in_proj.weight", "attention", per_head(lambda m: m.num_attention_heads, 3))
# key_states, value_states = self.to_kv(hidden_states).chunk(2, dim=-1)
_enter("GraniteSpeechConformerAttention GraniteSpeechPlusConformerAttention", "to_kv.weight", "attention", equal(2))
# qkv.reshape(batch, height * width, 3, heads, -1): the three come first.
_enter("GotOcr2VisionAttention", "qkv.weight", "attention", equal(3))
# qkv_states.split([hidden_size, num_key_value_heads * head_dim, num_key_value_heads * head_dim])
_enter(
    "DbrxAttention",
    "Wqkv.weight",
    "attention",
    lambda m, s: blocks(m.hidden_size, *[m.num_key_value_heads * m.head_dim] * 2),
)
# query_pos = num_heads * head_dim; qkv[..., query_pos : query_pos + num_key_value_heads * head_dim]
_enter(
    "Phi3Attention Phi4MultimodalAttention",
    "qkv_proj.weight",
    "attention",
    lambda m, s: blocks(m.config.num_attention_heads * m.head_dim, *[m.num_key_value_heads * m.head_dim] * 2),
)
# qkv.view(*, heads, 3 * head_size) and chunk(3, dim=-1): head after head, each with its q, k, v.
_enter("GPTNeoXAttention", "query_key_value.weight", "attention", per_head(lambda m: m.config.num_attention_heads, 3))
_enter("GPTNeoXJapaneseAttention", "query_key_value.weight", "attention", per_head(lambda m: m.num_attention_heads, 3))
# fused_qkv.view(batch, seq, num_heads, 3, head_dim); [..., 0, :], [..., 1, :], [..., 2, :]
_enter("BloomAttention PersimmonAttention", "query_key_value.weight", "attention", per_head(lambda m: m.num_heads, 3))
# qkv_states.reshape(batch, seq, num_attention_heads, 3 * head_dim), torch.split(qkv_states, head_dim, dim=3)
_enter("MiniMaxLightningAttention", "qkv_proj.weight", "attention", per_head(lambda m: m.num_attention_heads, 3))


def _falcon(m: Any, s: tuple[int, ...]) -> str:
    if m.new_decoder_architecture:  # view(-1, num_kv_heads, heads // num_kv_heads + 2, head_dim): [:-2], [-2], [-1]
        return f"heads({m.num_kv_heads}) {blocks(m.num_heads // m.num_kv_heads * m.head_dim, m.head_dim, m.head_dim)}"
    if m.multi_query:  # view(batch, seq, num_heads + 2, head_dim): [..., :-2, :], [..., [-2], :], [..., [-1], :]
        return blocks(m.num_heads * m.head_dim, m.head_dim, m.head_dim)
    return per_head(lambda m: m.num_heads, 3)(m, s)  # view(batch, seq, num_heads, 3, head_dim)


_enter("FalconAttention", "query_key_value.weight", "attention", _falcon)
# qkv.reshape(*, mp_num=4, -1), then query, value, key = torch.split(qkv_split, local_dim, dim=-1): q, v, k four times.
_enter("CodeGenAttention", "qkv_proj.weight", "attention", per_head(lambda m: 4, 3))
# key_states, value_states = self.kv_proj(hidden_states).chunk(2, dim=-1)
_enter("JetMoeAttention", "kv_proj.weight", "attention", equal(2))
# query_states, gate = torch.chunk(self.q_proj(x).view(*input_shape, -1, self.head_dim * 2), 2, dim=-1)
_enter(
    "Qwen3NextAttention Qwen3_5Attention Qwen3_5MoeAttention Qwen4ExpTextAttention",
    "q_proj.weight",
    "attention",
    per_head(lambda m: m.config.num_attention_heads, 2),
)

# ---- latent attention: a latent beside the rotary key, then the key beside the value in each head ----

_LATENT = (
    "AXK1Attention AXK2Attention BailingHybridAttention DeepseekV2Attention DeepseekV3Attention DeepseekV32Attention "
    "Dots3NoteTextAttention Glm4MoeLiteAttention GlmMoeDsaAttention HYV4Attention KimiLinearAttention LongcatFlashMLA "
    "MiniCPM3Attention YoutuAttention"
)
# kv_nope, k_rot = torch.split(compressed_kv, [self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
_enter(_LATENT, "kv_a_proj_with_mqa.weight", "attention", lambda m, s: blocks(m.kv_lora_rank, m.qk_rope_head_dim))
# .view(batch, seq, -1, qk_nope_head_dim + v_head_dim); torch.split(kv_nope, [qk_nope_head_dim, v_head_dim], dim=-1)
_enter(
    _LATENT,
    "kv_b_proj.weight",
    "attention",
    lambda m, s: f"heads({s[0] // (m.qk_nope_head_dim + m.v_head_dim)}) {blocks(m.qk_nope_head_dim, m.v_head_dim)}",
)
# query_states, gate_states = torch.split(query_gate_states, [self.qk_head_dim, self.v_head_dim], dim=-1), in each head
_enter(
    "AXK2Attention",
    "q_gate_proj.weight",
    "attention",
    lambda m, s: f"heads({m.num_heads}) {blocks(m.qk_head_dim, m.v_head_dim)}",
)
# chunk_kv[..., : head_dim] goes to the next window, chunk_kv[..., head_dim :] to this one; the gates alike.
for _name in ("kv_proj.weight", "gate_proj.weight"):
    _enter("DeepseekV4CSACompressor DeepseekV4Indexer", _name, "attention", equal(2))
# self.weight.view(self.n_groups, -1, hidden_dim), one matrix for each group of heads
_enter("DeepseekV4GroupedLinear", "weight", "attention", lambda m, s: f"heads({m.n_groups})")
# q, token_k = torch.split(qk, [index_n_heads * index_head_dim, index_kv_heads * index_head_dim], dim=-1)
_enter(
    "Qwen4ExpTextQSAIndexer",
    "index_qk_proj.weight",
    "attention",
    lambda m, s: blocks(m.index_n_heads * m.index_head_dim, m.index_kv_heads * m.index_head_dim),
)
# einsum("ibh,hnd->ibnd", h, self.q): stored (in, heads, head_dim)
for _name in ("q", "k", "v", "r"):
    _enter("XLNetRelativeAttention", _name, "attention", "flatten transpose")
# einsum("td,dnh->tnh", r, w_r), and "binh,dnh->bind" in the factorized form: stored (in, heads, head_dim)
_enter("FunnelRelMultiheadAttention", "r_kernel", "attention", "flatten transpose")
# einsum("ibnd,hnd->ibh", attn_vec, self.o): stored (out, heads, head_dim)
_enter("XLNetRelativeAttention", "o", "attention", "flatten")
# relative_states @ self.proj gives one logit for each distance, gathered by distance: a column is a distance.
_enter("InklingRelativeLogits Inkling2RelativeLogits", "proj", "vector", "vector")
# self.relative_pos_embeddings(hidden_states).view(*, num_buckets, heads), gathered by distance: a row is a distance.
_enter("ProphetNetNgramSelfAttention", "relative_pos_embeddings.weight", "vector", "vector")
# Conv1d(groups=num_key_value_heads + num_attention_heads): one matrix for each head
_enter(
    "ZayaCCAProjection",
    "conv_qk_grouped.weight",
    "conv",
    lambda m, s: f"flatten heads({m.num_key_value_heads + m.num_attention_heads})",
)

# ---- gate and up in one layer ----

# up_states.chunk(2, dim=-1), gate_up.chunk(2, dim=-1), torch.chunk(gate_up_state, 2, dim=-1)
_enter(
    "Phi3MLP Phi4MultimodalMLP Phi4MultimodalAudioMLP GlmMLP Glm4MLP Zamba2MLP MiniMaxM3VLDenseMLP",
    "gate_up_proj.weight",
    "mlp_in",
    equal(2),
)
# gate_up_proj(x) + adapter(x), an nn.Sequential of two layers of low rank, and only then torch.chunk(*, 2, dim=-1)
_enter("Zamba2MLP", "gate_up_proj_adapter_list.#.0.weight", "hidden", "matrix")
_enter("Zamba2MLP", "gate_up_proj_adapter_list.#.1.weight", "hidden", equal(2))
# input, gate = self.Wi(hidden_states).chunk(2, dim=-1)
_enter("ModernBertDecoderMLP ModernBertMLP", "Wi.weight", "mlp_in", equal(2))
# chunked_hidden_states = self.input_linear(x).chunk(2, dim=-1)
_enter("GraniteMoeHybridMLP GraniteMoeSWAMLP GraniteMoeSharedMLP", "input_linear.weight", "mlp_in", equal(2))
# hidden_states.view(batch, seq, 2, -1): activation_fn([..., 0, :]) * [..., 1, :]
_enter("MoshiGatingMLP", "fc1.weight", "mlp_in", equal(2))
# key = torch.square(torch.relu(self.key(key))); value = self.value(key); torch.sigmoid(self.receptance(x)) * value
for _name, _role in (("key", "mlp_in"), ("receptance", "hidden"), ("value", "mlp_out")):
    _enter("RwkvFeedForward", f"{_name}.weight", _role, "matrix")
# self.linear2(act(self.linear1(x))), self.down_proj(self.act_fn(self.up_proj(x))): mlps in classes of another name
for _first, _second, _classes in (
    ("linear1", "linear2", "UltrabertPredictionHead UltraVBertPredictionHead VoxtralRealtimeTextAdaRmsNorm"),
    ("up_proj", "down_proj", "NeoMMEPatchEmbeddings"),
):
    _enter(_classes, f"{_first}.weight", "mlp_in", "matrix")
    _enter(_classes, f"{_second}.weight", "mlp_out", "matrix")
# torch.nn.functional.glu(audio_encodings, dim=-1)
_enter("Gemma3nAudioConformerLightConv1d", "linear_start.weight", "hidden", equal(2))
# self.glu(self.up_conv(x)) with nn.GLU(dim=1)
_enter(
    "GraniteSpeechConformerConvModule GraniteSpeechPlusConformerConvModule",
    "up_conv.weight",
    "conv",
    lambda m, s: f"flatten {blocks(*[s[0] // 2] * 2)}",
)
# hidden_states[:, 0 : output_dim, :] + b1, times glu_act(hidden_states[:, output_dim : output_dim * 2, :] + b2)
_enter(
    "Phi4MultimodalAudioGluPointWiseConv",
    "ext_pw_conv_1d.weight",
    "conv",
    lambda m, s: f"flatten {blocks(m.output_dim, m.output_dim)}",
)

# ---- experts ----

# gate, up = nn.functional.linear(current_state, self.gate_up_proj[expert_idx]).chunk(2, dim=-1)
# or gate, up = gate_up.chunk(2, dim=-1) in _apply_gate, of F.linear with the same tensor
_GATED = (
    "AXK1Experts AXK2Experts AfmoeExperts BailingHybridExperts BeamExperts Cohere2MoeExperts DeepseekV2Experts "
    "DeepseekV32Experts DeepseekV3Experts DeepseekV4Experts Dots1Experts Dots3NoteExperts Ernie4_5_MoeExperts "
    "ExaoneMoeExperts FlexOlmoExperts FlintExperts Glm4MoeExperts Glm4MoeLiteExperts GlmMoeDsaExperts "
    "GraniteMoeExperts GraniteMoeHybridExperts GraniteMoeSWAExperts GraniteMoeSharedExperts HYV3Experts HYV4Experts "
    "HunYuanMoEV1Experts Inkling2Experts InklingExperts JambaExperts KimiLinearExperts Kolibri1Experts LagunaExperts "
    "Lfm2MoeExperts LongcatFlashExperts MellumExperts MiMoV2FlashExperts MiniMaxExperts MiniMaxM2Experts "
    "MiniMaxM3VLExperts MixtralExperts OlmoeExperts PhimoeExperts Qwen2MoeExperts Qwen3MoeExperts Qwen3NextExperts "
    "Qwen3_5MoeExperts Qwen4ExpTextExperts SolarOpenExperts ZayaExperts Gemma4TextExperts"
)
_enter(_GATED, "gate_up_proj", "expert_in", equal(2))
# F.linear(current_hidden_states, self.down_proj[expert_idx])
_enter(_GATED + " NemotronHExperts InklingSharedExperts", "down_proj", "expert_out", "matrix")
# F.linear(current_state, self.up_proj[expert_idx]): no gate
_enter("NemotronHExperts", "up_proj", "expert_in", "matrix")
# torch.bmm(hidden_states, self.gate_proj.transpose(1, 2))
for _name in ("gate_proj", "up_proj"):
    _enter("InklingSharedExperts", _name, "expert_in", "matrix")
# (current_state @ self.gate_up_proj[expert_idx]).chunk(2, dim=-1), torch.bmm(x, self.gate_up_proj): stored (in, out)
_enter(
    "AriaExperts Llama4TextExperts",
    "gate_up_proj",
    "expert_in",
    lambda m, s: f"transpose {blocks(*[s[2] // 2] * 2)}",
)
# gate_up = x @ self.gate_up_proj[expert_idx]; gate, up = gate_up[..., ::2], gate_up[..., 1::2]
_enter("GptOssExperts", "gate_up_proj", "expert_in", "transpose interleave(2)")
# x @ self.down_proj[expert_idx], torch.bmm(x, self.down_proj)
_enter("AriaExperts Llama4TextExperts GptOssExperts", "down_proj", "expert_out", "transpose")
# v1.view(-1, ffn_hidden_size, hidden_size)[expert_idx], then x.matmul(expert_w1.T), x.matmul(expert_v1.T)
for _name in ("w1", "v1"):
    _enter("DbrxExpertGLU", _name, "expert_in", lambda m, s: f"heads({m.moe_num_experts})")
# intermediate_states.matmul(expert_w2)
_enter("DbrxExpertGLU", "w2", "expert_out", lambda m, s: f"heads({m.moe_num_experts}) transpose")
# F.linear(input_list[i], self.weight[i]); chunked_hidden_states = hidden_states.chunk(2, dim=-1) in the mlp,
# and none in the attention, whose experts make queries and outputs.
_enter("JetMoeMoE", "input_linear.weight", "expert_in", equal(2))
_enter("JetMoeMoA", "input_linear.weight", "expert_in", "matrix")
_enter("JetMoeMoE JetMoeMoA", "output_linear.weight", "expert_out", "matrix")
