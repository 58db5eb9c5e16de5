"""Networks of timm, torchvision and transformers, their weights, and what those were trained with."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from factor_transfer.errors import InputError, choose, suggest
from factor_transfer.models.optional import answering, library
from factor_transfer.models.outputs import return_logits

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Zoo(Protocol):
    """A library of networks."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """See ``external.build_external``."""

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """See ``external.zoo_statistics``."""

    def size(self, name: str, model: nn.Module) -> int | None:
        """Height and width of the images that the network is made for."""

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """The names of the outputs that are stored with the network's weights; ``None`` if there are none."""

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """What the network's weights were trained with, beside mean and standard deviation, such as ``crop``."""


class Timm:
    """PyTorch Image Models: ``resnet18``, ``resnet18.a1_in1k`` (weights by a tag), ``hf-hub:…``, ``local-dir:…``."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """By ``timm.create_model``; it adapts the zoo's weights to other channels and classes itself."""
        timm = library("timm")
        stored = ":" in name
        if not stored:
            if not timm.is_model(name) or ("." in name and not timm.is_model_pretrained(name)):
                choose("network of timm", name, [*timm.list_models(), *timm.list_pretrained()])
            own_weights = "pretrained_cfg" in args or "pretrained_cfg_overlay" in args
            if pretrained and not own_weights and not timm.is_model_pretrained(name):
                raise InputError(f"timm has no weights of {name!r}{suggest(name, timm.list_pretrained())}")
        fetches = (pretrained or stored) and not name.startswith("local-dir:")
        with answering("timm", name, args, fetches):
            model: nn.Module = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **args
            )
        return model

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """Those of ``pretrained_cfg``."""
        config = _timm_config(model)
        return _statistics(config.get("mean"), config.get("std"))

    def size(self, name: str, model: nn.Module) -> int | None:
        """That of ``pretrained_cfg``."""
        size = _timm_config(model).get("input_size")
        return int(size[-1]) if size else None

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """The ``label_names`` of ``pretrained_cfg``."""
        names = _timm_config(model).get("label_names")
        return [str(one) for one in names] if isinstance(names, list | tuple) else None

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """That of ``pretrained_cfg``."""
        config = _timm_config(model)
        found = {"size": self.size(name, model), "crop": config.get("crop_pct")}
        found["interpolation"] = config.get("interpolation")
        return {key: value for key, value in found.items() if value is not None}


def _timm_config(model: nn.Module) -> dict[str, Any]:
    config: Any = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, dict) else {}


class Torchvision:
    """The classification networks of ``torchvision.models``."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """By ``torchvision.models.get_model``; pretrained weights are the ``DEFAULT`` ones, but for the classifier."""
        models = library("torchvision").models
        choose("classification network of torchvision", name, models.list_models(module=models))
        if in_channels != 3:
            raise InputError(
                f"torchvision:{name} takes images of 3 channels, these have {in_channels}; timm has networks for any "
                "number of channels"
            )
        with answering("torchvision", name, args, fetches=pretrained):
            model: nn.Module = models.get_model(name, num_classes=num_classes, **args)
            if pretrained:
                if not list(models.get_model_weights(name)):
                    raise InputError(f"torchvision has no weights of {name!r}; leave pretrained out")
                zoo: nn.Module = models.get_model(name, weights="DEFAULT", progress=False, **args)
                model = _with_classifier(zoo, model)
        model.register_forward_hook(return_logits)  # inception_v3 and googlenet have auxiliary ones in training
        return model

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """Those of the ``DEFAULT`` weights' transforms."""
        transforms = _torchvision_transforms(name)
        return _statistics(getattr(transforms, "mean", None), getattr(transforms, "std", None))

    def size(self, name: str, model: nn.Module) -> int | None:
        """What the ``DEFAULT`` weights' transforms cut out."""
        crop: Any = getattr(_torchvision_transforms(name), "crop_size", None)
        return int(crop[0]) if crop else None

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """None: a pretrained network's classifier is made anew unless it has as many classes as ImageNet."""
        return None

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """That of the ``DEFAULT`` weights' transforms."""
        transforms = _torchvision_transforms(name)
        keys = {"resize": "resize_size", "interpolation": "interpolation"}
        found: dict[str, Any] = {"size": self.size(name, model)}
        found |= {key: getattr(transforms, attribute, None) for key, attribute in keys.items()}
        return {key: _plain(value) for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """A setting of a transform, as people write it."""
    if isinstance(value, list | tuple) and value:
        return value[0]
    return getattr(value, "value", value)


def _torchvision_transforms(name: str) -> Any:
    weights = library("torchvision").models.get_model_weights(name)
    return weights.DEFAULT.transforms() if list(weights) else None


def _with_classifier(zoo: nn.Module, model: nn.Module) -> nn.Module:
    """``zoo`` with those layers of ``model`` that have another shape.

    The two were built alike but for the number of classes: what differs is the classifier, and auxiliary ones.
    """
    for path, layer in list(zoo.named_modules()):
        other = model.get_submodule(path)
        old, new = layer.named_parameters(recurse=False), other.named_parameters(recurse=False)
        if [(key, value.shape) for key, value in old] != [(key, value.shape) for key, value in new]:
            zoo.set_submodule(path, other)
    return zoo


class Transformers:
    """Image classification in transformers: a model type (``vit``), a name on the hub (``owner/name``) or a folder."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """By ``AutoModelForImageClassification``; ``args`` are settings of the network's configuration."""
        transformers = library("transformers")
        stored = _stored(name)
        # What lies beside a network on the hub may be a program. It is not run: nobody is asked, either.
        if not stored:
            types = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
            choose("image classification type of transformers", name, types)
            if pretrained:
                raise InputError(
                    f"transformers:{name} is a type of network, which has no weights; name a network on the hub, such "
                    "as transformers:google/vit-base-patch16-224, or the folder of one"
                )
        settings = {"num_labels": num_classes, "num_channels": in_channels} | args
        with answering("transformers", name, args, fetches=stored and not Path(name).is_dir()):
            if stored:
                config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            else:
                config = transformers.AutoConfig.for_model(name)
            # It takes unknown settings in silence, so they are checked here.
            known = {"num_labels", *config.to_dict()}
            for key in args:
                choose(f"setting of transformers:{name}", key, known)
            if "num_channels" not in known:
                if in_channels != 3:
                    raise InputError(f"transformers:{name} takes 3 channels, these images have {in_channels}")
                del settings["num_channels"]
            if stored:
                config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **settings)
            else:
                config = transformers.AutoConfig.for_model(name, **settings)
            factory = transformers.AutoModelForImageClassification
            if pretrained:
                if Path(name).is_dir():  # nothing is fetched, so there is nothing to wait for
                    transformers.utils.logging.disable_progress_bar()
                model, report = factory.from_pretrained(
                    name,
                    config=config,
                    trust_remote_code=False,
                    dtype=torch.float32,  # precision is the recipe's
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
                _check_weights(name, model, report)
            else:
                model = factory.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.register_forward_hook(return_logits)
        network: nn.Module = model
        return network.train()  # from_pretrained returns it in evaluation mode, unlike the others

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """Those of the image processor that is stored beside the network."""
        processor = _processor(name)
        # Without it, or with another scale, the figures are not of images in 0..1.
        scale = processor.get("rescale_factor", 1 / 255)
        if not processor or not processor.get("do_normalize", True) or abs(scale * 255 - 1) > 1e-3:
            return None
        return _statistics(processor.get("image_mean"), processor.get("image_std"))

    def size(self, name: str, model: nn.Module) -> int | None:
        """That of the configuration; many convolutional networks have none."""
        size: Any = getattr(getattr(model, "config", None), "image_size", None)
        return int(size[0]) if isinstance(size, list | tuple) else size

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """The configuration's ``id2label``, unless it has the names that transformers makes up."""
        labels: Any = getattr(getattr(model, "config", None), "id2label", None)
        if not _stored(name) or not isinstance(labels, dict):
            return None
        names = [str(labels[number]) for number in sorted(labels)]
        return None if all(re.fullmatch(r"LABEL_\d+", one) for one in names) else names

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """That of the image processor that is stored beside the network."""
        processor = _processor(name)
        found: dict[str, Any] = {}
        if processor.get("do_resize") and processor.get("size"):
            found["size"] = _side(processor["size"])
        if processor.get("do_center_crop") and processor.get("crop_size"):
            found["crop"] = _side(processor["crop_size"])
        if processor.get("resample") is not None:
            found["resample"] = processor["resample"]
        if not processor.get("do_normalize", True):
            found["normalised"] = False
        scale = processor.get("rescale_factor", 1 / 255)
        if isinstance(scale, int | float) and abs(scale * 255 - 1) > 1e-3:
            found["scale"] = scale
        return found


def _processor(name: str) -> dict[str, Any]:
    """The settings of the image processor that is stored beside a network; empty if there is none."""
    if not _stored(name):
        return {}
    library("transformers")
    mixin = import_module("transformers.image_processing_base").ImageProcessingMixin
    try:
        with answering("transformers", name, {}, fetches=not Path(name).is_dir()):
            processor, _ = mixin.get_image_processor_dict(name)
    except InputError:
        return {}
    return dict(processor)


def _side(size: Any) -> Any:
    """Height of a processor's ``size``: a number, or a dict of height and width, or of the shortest edge."""
    if isinstance(size, dict):
        return size.get("height", size.get("shortest_edge"))
    return size


def _stored(name: str) -> bool:
    """Whether it is a name on the hub or a folder, and not a type of network."""
    return "/" in name or Path(name).is_dir()


def _check_weights(name: str, model: nn.Module, report: dict[str, Any]) -> None:
    """Only the classifier may be without the zoo's weights."""
    lost = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    body = sorted(key for key in lost if key.startswith(f"{getattr(model, 'base_model_prefix', '')}."))
    if body:
        raise InputError(
            f"the weights of transformers:{name} do not fit a network with these settings and channels in "
            f"{', '.join(body[:3])}{', …' if len(body) > 3 else ''}; leave out pretrained, or what makes it differ"
        )


def _statistics(mean: Any, std: Any) -> Statistics | None:
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        return None
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


ZOOS: dict[str, Zoo] = {"timm": Timm(), "torchvision": Torchvision(), "transformers": Transformers()}
