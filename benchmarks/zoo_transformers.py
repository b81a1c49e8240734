"""Transformers of the zoo: the architectures of the `transformers` package, small and with random weights.

Each is wrapped so that it takes tensors by position and returns one tensor, as a captured graph does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

VOCABULARY, TOKENS = 96, 16
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WORDS = _IDS | {"max_position_embeddings": 64}
_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER = _SIZES | _WORDS | {"intermediate_size": 128, "num_labels": 3}
_DECODER = _ENCODER | {"use_cache": False}
_GROUPED = _DECODER | {"num_key_value_heads": 2}  # two query heads share one key and one value
_PIXELS = _SIZES | {"intermediate_size": 128, "image_size": 32, "patch_size": 8, "num_labels": 3}


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        config: class of its configuration.
        model: class of the model.
        attention: `eager` or `sdpa`.
        settings: of the configuration.
        takes: names of the arguments that its inputs are given as.
        inputs: makes them, batch 2.
        part: the submodule that is the model, where not all of it is.
    """

    config: str
    model: str
    attention: str
    settings: Mapping[str, Any]
    takes: tuple[str, ...]
    inputs: Callable[[], tuple[Tensor, ...]]
    part: str = ""


class Positional(nn.Module):
    """A model that is called with keywords, called by position instead; it returns the first tensor of its answer."""

    def __init__(self, model: nn.Module, takes: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.takes = takes

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Call the model; `second` is given if it takes two."""
        given = (first,) if second is None else (first, second)
        found: Tensor = self.model(**dict(zip(self.takes, given, strict=True)))[0]
        return found


def make(recipe: Recipe) -> nn.Module:
    """Build a model with random weights; nothing is downloaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    config = getattr(transformers, recipe.config)(**recipe.settings, attn_implementation=recipe.attention)
    model: nn.Module = getattr(transformers, recipe.model)(config)
    return Positional(model.get_submodule(recipe.part), recipe.takes).eval()


def tokens() -> tuple[Tensor, ...]:
    """Return two sentences of numbers."""
    return (torch.randint(5, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(0)),)


def padded_tokens() -> tuple[Tensor, ...]:
    """Return two sentences and the mask that says where they end."""
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, TOKENS // 2 :] = 0
    return (*tokens(), mask)


def drawn(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that gives one normally distributed input."""
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def _text(
    config: str, model: str, attention: str, settings: Mapping[str, Any], masked: bool = False, part: str = ""
) -> Recipe:
    takes = ("input_ids", "attention_mask") if masked else ("input_ids",)
    return Recipe(config, model, attention, settings, takes, padded_tokens if masked else tokens, part)


def _image(config: str, model: str, attention: str, settings: Mapping[str, Any]) -> Recipe:
    return Recipe(config, model, attention, settings, ("pixel_values",), drawn(2, 3, 32, 32))


_DISTILBERT = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "num_labels": 3} | _WORDS
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False} | _IDS
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4} | _IDS
_WHISPER = {
    "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 16,
    "max_source_positions": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 128,
    "decoder_start_token_id": 1,
} | _IDS  # fmt: skip
_WAV2VEC2 = _SIZES | {
    "intermediate_size": 128, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
} | _IDS  # fmt: skip
_MODERNBERT = _ENCODER | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
_DEBERTA = _ENCODER | {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
    "max_relative_positions": -1,
}  # fmt: skip
_SEGFORMER = {
    "hidden_sizes": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 2, 4), "num_labels": 3,
}  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "bert": _text("BertConfig", "BertForSequenceClassification", "eager", _ENCODER, masked=True),
    "bert_sdpa": _text("BertConfig", "BertModel", "sdpa", _ENCODER, masked=True),
    "distilbert": _text("DistilBertConfig", "DistilBertForSequenceClassification", "eager", _DISTILBERT),
    "roberta": _text("RobertaConfig", "RobertaForSequenceClassification", "sdpa", _ENCODER),
    "electra": _text("ElectraConfig", "ElectraForSequenceClassification", "eager", _ENCODER | {"embedding_size": 32}),
    "albert": _text("AlbertConfig", "AlbertForSequenceClassification", "eager", _ENCODER | {"embedding_size": 32}),
    "mpnet": _text("MPNetConfig", "MPNetForSequenceClassification", "eager", _ENCODER),
    "deberta_v2": _text("DebertaV2Config", "DebertaV2ForSequenceClassification", "eager", _DEBERTA),
    "modernbert": _text("ModernBertConfig", "ModernBertForSequenceClassification", "sdpa", _MODERNBERT),
    "t5_encoder": _text("T5Config", "T5EncoderModel", "eager", _T5),
    "gpt2": _text("GPT2Config", "GPT2LMHeadModel", "eager", _GPT2),
    "opt": _text("OPTConfig", "OPTForCausalLM", "sdpa", _DECODER | {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": _text("GPTNeoXConfig", "GPTNeoXForCausalLM", "eager", _DECODER),
    "llama": _text("LlamaConfig", "LlamaForCausalLM", "eager", _GROUPED),
    "mistral": _text("MistralConfig", "MistralForCausalLM", "sdpa", _GROUPED | {"sliding_window": 8}),
    "qwen2": _text("Qwen2Config", "Qwen2ForCausalLM", "sdpa", _GROUPED),
    "qwen3": _text("Qwen3Config", "Qwen3ForCausalLM", "eager", _GROUPED | {"head_dim": 16}),
    "gemma": _text("GemmaConfig", "GemmaForCausalLM", "eager", _GROUPED | {"head_dim": 16}),
    "phi": _text("PhiConfig", "PhiForCausalLM", "sdpa", _DECODER),
    "vit": _image("ViTConfig", "ViTForImageClassification", "eager", _PIXELS),
    "deit": _image("DeiTConfig", "DeiTForImageClassification", "sdpa", _PIXELS),
    "dinov2": _image("Dinov2Config", "Dinov2ForImageClassification", "sdpa", _PIXELS | {"mlp_ratio": 2}),
    "clip_vision": _image(
        "CLIPVisionConfig", "CLIPVisionModelWithProjection", "eager", _PIXELS | {"projection_dim": 32}
    ),
    "siglip_vision": _image("SiglipVisionConfig", "SiglipVisionModel", "sdpa", _PIXELS),
    "segformer": _image("SegformerConfig", "SegformerForImageClassification", "eager", _SEGFORMER),
    "whisper_encoder": Recipe(
        "WhisperConfig", "WhisperModel", "eager", _WHISPER, ("input_features",), drawn(2, 16, 64), part="encoder"
    ),
    "wav2vec2": Recipe("Wav2Vec2Config", "Wav2Vec2ForCTC", "eager", _WAV2VEC2, ("input_values",), drawn(2, 1600)),
    "hubert": Recipe("HubertConfig", "HubertForCTC", "sdpa", _WAV2VEC2, ("input_values",), drawn(2, 1600)),
}
