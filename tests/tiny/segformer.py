"""A SegFormer that labels every pixel by the nearest of given colours: weights set, not trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CARRIER = 100.0
"""Two channels of this size with opposite signs make every layer norm all but linear."""
LIFT = 10.0
"""Added before the ReLU of the decoder, so that it cuts nothing."""
SHARPNESS = 12.0
Colour = tuple[int, int, int]


def build_segformer(
    folder: Path,
    colours: Mapping[str, Colour],
    order: Sequence[int] | None = None,
    size: tuple[int, int] = (240, 360),
) -> Path:
    """Save a parser and its preprocessing into `folder` and return it.

    Args:
        colours: what each label looks like.
        order: places of the labels among the ids; as given when absent.
        size: width and height of the network's input.
    """
    names = list(colours)
    names = names if order is None else [names[index] for index in order]
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=1,
            depths=(1,),
            sr_ratios=(16,),
            hidden_sizes=(8,),
            patch_sizes=(3,),
            strides=(2,),
            num_attention_heads=(1,),
            mlp_ratios=(1,),
            decoder_hidden_size=8,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )
    with torch.no_grad():
        _set_encoder(model)
        _set_decoder(model, [colours[name] for name in names])
    model.save_pretrained(folder)
    write_preprocessing(folder, size)
    return folder


def write_preprocessing(folder: Path, input_size: tuple[int, int], **settings: object) -> None:
    width, height = input_size
    said = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        **settings,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def _set_encoder(model: SegformerForSemanticSegmentation) -> None:
    """Every token carries the colour of its pixel through all layers."""
    for weight in model.segformer.parameters():
        weight.zero_()
    (stage,) = model.segformer.stages
    for norm in (stage.patch_embeddings.layer_norm, stage.layer_norm):
        norm.weight.fill_(CARRIER / 2)  # the deviation of the eight channels
    projection = stage.patch_embeddings.proj
    for channel in range(3):
        projection.weight[channel, channel, 1, 1] = 1.0
        projection.weight[channel + 3, channel, 1, 1] = -1.0  # keeps the channels' mean at zero
    projection.bias[6], projection.bias[7] = CARRIER, -CARRIER


def _set_decoder(model: SegformerForSemanticSegmentation, colours: list[Colour]) -> None:
    """Logits fall with the squared distance to each colour."""
    head = model.decode_head
    (projection,) = head.linear_projections
    projection.proj.weight.copy_(torch.eye(8))
    projection.proj.bias.zero_()
    head.linear_fuse.weight.copy_(torch.eye(8)[:, :, None, None])
    head.batch_norm.weight.fill_(1.0)
    head.batch_norm.bias.fill_(LIFT)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    seen = (torch.tensor(colours) / 255 - mean) / std
    head.classifier.weight.zero_()
    head.classifier.weight[:, :3, 0, 0] = SHARPNESS * 2 * seen
    head.classifier.bias.copy_(SHARPNESS * (-(seen**2).sum(dim=1) - 2 * LIFT * seen.sum(dim=1)))
