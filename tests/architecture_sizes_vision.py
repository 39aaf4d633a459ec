"""Sizes for vision models: what ``architecture_sizes`` says of them, kept apart.

Classes are eleven, unlike any width; stages have at most two layers, and widths of their own.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]


def _all(value: Any, names: str) -> Fields:
    return dict.fromkeys(names.split(), value)


# Stands in for timm's ResNet-50 in detectors; a stage has a shape of its own, so that one block shows each.
RESNET: Fields = {
    **{"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [24, 40, 64, 80], "depths": [1, 1, 1, 2]},
    **{"out_features": ["stage4"]},
}

# timm's own models in a wrapper, and what has one of them as its tower.
UNBUILDABLE = ("timm_wrapper", "edgetam", "edgetam_video")

# Classes to tell apart: more than two, which are also the coordinates of a place, and unlike any width.
_ELEVEN: Fields = {"num_labels": 11}
CLASSES: dict[str, Fields] = {
    "image_classification": _ELEVEN,
    "object_detection": _ELEVEN,
    "semantic_segmentation": _ELEVEN,
    "universal_segmentation": _ELEVEN,
    "instance_segmentation": _ELEVEN,
}

# They find text, and have a list of classes of their own.
_PP_OCR = "pp_ocrv5_server_det pp_ocrv5_mobile_det pp_ocrv6_medium_det pp_ocrv6_small_det"
ONE_CLASS = frozenset(_PP_OCR.split())

_RATIOS = (("long", 7), ("mid", 5), ("short", 3))
_INTRACLASS = {
    **{"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]},
    **{f"vertical_long_to_small_conv_{k}ratio": [[n, 1], [1, 1], [n // 2, 0]] for k, n in _RATIOS},
    **{f"horizontal_small_to_long_conv_{k}ratio": [[1, n], [1, 1], [0, n // 2]] for k, n in _RATIOS},
    **{f"symmetric_conv_long_{k}ratio": [[n, n], [1, 1], [n // 2, n // 2]] for k, n in _RATIOS},
}
_SWIN: Fields = {"embed_dim": 24, "depths": [2, 2], "num_heads": [3, 6]}

# As in architecture_sizes.
EXCEPTIONS: dict[str, Fields] = {
    **_all({"backbone_config": RESNET}, "conditional_detr dab-detr table-transformer"),
    "detr": {  # its masks are made from all stages, by convolutions of 8 groups
        **{"backbone_config": RESNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
        **_all(8, "encoder_attention_heads decoder_attention_heads"),
    },
    **_all(_SWIN, "swin swinv2 donut-swin"),
    **_all(
        {"intraclass_block_config": _INTRACLASS, "kernel_list": [3, 2, 2]}, "pp_ocrv5_server_det pp_ocrv6_medium_det"
    ),
    "omdet-turbo": {"backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4], "depths": [1, 1, 1, 2]}},
    "dinat": {"patch_size": 4},
    **_all({"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4}, "lw_detr rf_detr"),
    "videoprism_vision_model": {"tubelet_size": [1, 8, 8]},
    "beit": {
        **{"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "use_relative_position_bias": True},
        **{"use_absolute_position_embeddings": True},
    },
    "sapiens2": {"head_config": {"upsample_out_channels": [20, 18], "conv_out_channels": [14]}},
    "tipsv2": {"vision_config": {"hidden_size": 32}},
    "deformable_detr": {"backbone_config": RESNET | {"out_features": ["stage2", "stage3", "stage4"]}},
}

VARIANTS: dict[str, dict[str, Fields]] = {
    "image_classification": {
        "beit@shared_positions": {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
        "beit@two_classes": {"num_labels": 2},
        "data2vec-vision@relative": {"use_relative_position_bias": True},
        "dinov2@gated": {"use_swiglu_ffn": True},  # as in the giant one
        "resnet@basic": {"layer_type": "basic"},  # as in ResNet-18 and 34
        "swin@absolute": {"use_absolute_embeddings": True},
    },
    "object_detection": {
        "conditional_detr@two_classes": {"num_labels": 2},
        "dab-detr@patterns": {"num_patterns": 3},
        "deformable_detr@two_classes": {"num_labels": 2},  # as many as coordinates of a reference point
        "deformable_detr@two_stage": {"two_stage": True, "with_box_refine": True},
        "lw_detr@two_classes": {"num_labels": 2},
        "rt_detr@one_class": {"num_labels": 1},
    },
    "semantic_segmentation": {"dpt@hybrid": {"is_hybrid": True}, "segformer@two_classes": {"num_labels": 2}},
    "universal_segmentation": {"oneformer@training": {"is_training": True}},
    "zero_shot_image_classification": {"clip@narrow": {"projection_dim": 24}},
}

# Family -> the most used models, whose routing is tested always; that of the others with the slow tests.
QUICK = {
    "image_classification": "vit deit swin convnext resnet beit dinov2 mobilenet_v2 efficientnet segformer clip siglip",
    "object_detection": "detr deformable_detr rt_detr yolos",
    "semantic_segmentation": "beit segformer",
    "universal_segmentation": "mask2former",
    "instance_segmentation": "",
    "zero_shot_image_classification": "clip siglip",
    "zero_shot_object_detection": "grounding-dino owlvit",
    "masked_image_modeling": "",
    "mask_generation": "sam",
    "depth_estimation": "depth_anything",
}
