"""The table of ``routing_table``, continued: what makes the logits of classes in vision models."""

from __future__ import annotations

from routing_table import _enter

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

# output = self.dense2(output) makes boxes, last in the model, in a head that is not called so: nothing can tell
_enter("OwlViTForObjectDetection", "box_head.dense2.weight", "unknown", "matrix")
