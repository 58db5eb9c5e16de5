"""The networks of timm, torchvision and transformers, with their pretrained weights and preprocessing."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from factor_transfer.errors import InputError, choose, suggest
from factor_transfer.models.optional import library, zoo_errors
from factor_transfer.models.outputs import return_logits

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Zoo(Protocol):
    """A library of networks."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """Build a network, see ``external.build_external``."""

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """The statistics of the pretrained weights' preprocessing, see ``external.zoo_statistics``."""

    def size(self, name: str, model: nn.Module) -> int | None:
        """The height and width in pixels of the images that the network is made for; ``None`` if not known."""

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """The class names that are stored with the network's weights; ``None`` if there are none."""

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """The preprocessing of the network's weights, such as ``crop``, besides mean and standard deviation."""


class Timm:
    """The networks of timm: ``resnet18``, ``resnet18.a1_in1k`` (tagged weights), ``hf-hub:…``, ``local-dir:…``."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """Build a network by ``timm.create_model``, which adapts pretrained weights to other channels and classes."""
        timm = library("timm")
        stored = ":" in name
        if not stored:
            if not timm.is_model(name) or ("." in name and not timm.is_model_pretrained(name)):
                choose("network of timm", name, [*timm.list_models(), *timm.list_pretrained()])
            given_weights = "pretrained_cfg" in args or "pretrained_cfg_overlay" in args
            if pretrained and not given_weights and not timm.is_model_pretrained(name):
                raise InputError(f"timm has no pretrained weights of {name!r}{suggest(name, timm.list_pretrained())}")
        fetches = (pretrained or stored) and not name.startswith("local-dir:")
        with zoo_errors("timm", name, args, fetches):
            model: nn.Module = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **args
            )
        return model

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """The mean and standard deviation in ``pretrained_cfg``."""
        config = _timm_config(model)
        return _statistics(config.get("mean"), config.get("std"))

    def size(self, name: str, model: nn.Module) -> int | None:
        """The input size in ``pretrained_cfg``."""
        size = _timm_config(model).get("input_size")
        return int(size[-1]) if size else None

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """The ``label_names`` in ``pretrained_cfg``."""
        names = _timm_config(model).get("label_names")
        return [str(label) for label in names] if isinstance(names, list | tuple) else None

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """The size, crop and interpolation in ``pretrained_cfg``."""
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
        """Build a network by ``torchvision.models.get_model``, with the ``DEFAULT`` weights if ``pretrained``."""
        models = library("torchvision").models
        choose("classification network of torchvision", name, models.list_models(module=models))
        if in_channels != 3:
            raise InputError(
                f"torchvision:{name} takes images of 3 channels, but these have {in_channels}; timm has networks for "
                "any number of channels"
            )
        with zoo_errors("torchvision", name, args, fetches=pretrained):
            model: nn.Module = models.get_model(name, num_classes=num_classes, **args)
            if pretrained:
                if not list(models.get_model_weights(name)):
                    raise InputError(f"torchvision has no pretrained weights of {name!r}; build it without them")
                zoo: nn.Module = models.get_model(name, weights="DEFAULT", progress=False, **args)
                model = _with_classifier(zoo, model)
        model.register_forward_hook(return_logits)  # inception_v3 and googlenet return auxiliary logits in training
        return model

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """The mean and standard deviation of the transforms of the ``DEFAULT`` weights."""
        transforms = _torchvision_transforms(name)
        return _statistics(getattr(transforms, "mean", None), getattr(transforms, "std", None))

    def size(self, name: str, model: nn.Module) -> int | None:
        """The crop size of the transforms of the ``DEFAULT`` weights."""
        crop: Any = getattr(_torchvision_transforms(name), "crop_size", None)
        return int(crop[0]) if crop else None

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """``None``, because the classifier is new unless it has as many classes as ImageNet."""
        return None

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """The sizes and the interpolation of the transforms of the ``DEFAULT`` weights."""
        transforms = _torchvision_transforms(name)
        keys = {"resize": "resize_size", "interpolation": "interpolation"}
        found: dict[str, Any] = {"size": self.size(name, model)}
        found |= {key: getattr(transforms, attribute, None) for key, attribute in keys.items()}
        return {key: _plain(value) for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """The value of a transform's setting as a plain number or string."""
    if isinstance(value, list | tuple) and value:
        return value[0]
    return getattr(value, "value", value)


def _torchvision_transforms(name: str) -> Any:
    weights = library("torchvision").models.get_model_weights(name)
    return weights.DEFAULT.transforms() if list(weights) else None


def _with_classifier(zoo: nn.Module, model: nn.Module) -> nn.Module:
    """Replace the layers of ``zoo`` whose parameters have other shapes in ``model`` by those of ``model``, in place.

    The two networks differ only in their number of classes, so these are the classifier and auxiliary classifiers.
    """
    for path, layer in list(zoo.named_modules()):
        other = model.get_submodule(path)
        old, new = layer.named_parameters(recurse=False), other.named_parameters(recurse=False)
        if [(key, value.shape) for key, value in old] != [(key, value.shape) for key, value in new]:
            zoo.set_submodule(path, other)
    return zoo


class Transformers:
    """The classification networks of transformers: a model type (``vit``), a name on the hub, or a folder."""

    def build(self, name: str, num_classes: int, in_channels: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
        """Build a network by ``AutoModelForImageClassification``; ``args`` are settings of its configuration.

        A network on the hub may come with code, which is not run (``trust_remote_code=False`` also avoids a prompt).
        """
        transformers = library("transformers")
        stored = _stored(name)
        if not stored:
            types = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
            choose("image classification type of transformers", name, types)
            if pretrained:
                raise InputError(
                    f"transformers:{name} is a model type, which has no pretrained weights; name a network on the hub, "
                    "such as transformers:google/vit-base-patch16-224, or its folder"
                )
        settings = {"num_labels": num_classes, "num_channels": in_channels} | args
        with zoo_errors("transformers", name, args, fetches=stored and not Path(name).is_dir()):
            if stored:
                config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            else:
                config = transformers.AutoConfig.for_model(name)
            # Configurations accept unknown settings silently, so they are checked here.
            known = {"num_labels", *config.to_dict()}
            for key in args:
                choose(f"setting of transformers:{name}", key, known)
            if "num_channels" not in known:
                if in_channels != 3:
                    raise InputError(f"transformers:{name} takes images of 3 channels, but these have {in_channels}")
                del settings["num_channels"]
            if stored:
                config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **settings)
            else:
                config = transformers.AutoConfig.for_model(name, **settings)
            factory = transformers.AutoModelForImageClassification
            if pretrained:
                if Path(name).is_dir():  # a folder is loaded without a download, so no progress is needed
                    transformers.utils.logging.disable_progress_bar()
                model, report = factory.from_pretrained(
                    name,
                    config=config,
                    trust_remote_code=False,
                    dtype=torch.float32,  # the recipe chooses the precision, not the stored configuration
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
                _check_weights(name, model, report)
            else:
                model = factory.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.register_forward_hook(return_logits)
        network: nn.Module = model
        return network.train()  # from_pretrained returns a network in evaluation mode, unlike the other zoos

    def statistics(self, name: str, model: nn.Module) -> Statistics | None:
        """The mean and standard deviation of the image processor that is stored with the network."""
        processor = _processor(name)
        # Without rescaling by 1/255, the statistics are not those of pixels from 0 to 1.
        scale = processor.get("rescale_factor", 1 / 255)
        if not processor or not processor.get("do_normalize", True) or abs(scale * 255 - 1) > 1e-3:
            return None
        return _statistics(processor.get("image_mean"), processor.get("image_std"))

    def size(self, name: str, model: nn.Module) -> int | None:
        """The image size in the configuration, which many convolutional networks do not have."""
        size: Any = getattr(getattr(model, "config", None), "image_size", None)
        return int(size[0]) if isinstance(size, list | tuple) else size

    def classes(self, name: str, model: nn.Module) -> list[str] | None:
        """The ``id2label`` of the configuration, unless it contains placeholder names of transformers."""
        labels: Any = getattr(getattr(model, "config", None), "id2label", None)
        if not _stored(name) or not isinstance(labels, dict):
            return None
        names = [str(labels[number]) for number in sorted(labels)]
        return None if all(re.fullmatch(r"LABEL_\d+", label) for label in names) else names

    def preprocessing(self, name: str, model: nn.Module) -> dict[str, Any]:
        """The sizes, interpolation and scaling of the image processor that is stored with the network."""
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
    """The settings of the image processor that is stored with a network; empty if there is none."""
    if not _stored(name):
        return {}
    library("transformers")
    mixin = import_module("transformers.image_processing_base").ImageProcessingMixin
    try:
        with zoo_errors("transformers", name, {}, fetches=not Path(name).is_dir()):
            processor, _ = mixin.get_image_processor_dict(name)
    except InputError:
        return {}
    return dict(processor)


def _side(size: Any) -> Any:
    """The height in a processor's ``size``, which is a number or a dict with height and width or the shortest edge."""
    if isinstance(size, dict):
        return size.get("height", size.get("shortest_edge"))
    return size


def _stored(name: str) -> bool:
    """Whether a name is a name on the hub or a folder, and not a model type."""
    return "/" in name or Path(name).is_dir()


def _check_weights(name: str, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuse a network whose pretrained weights do not fit, except for the classifier."""
    not_loaded = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    body = sorted(key for key in not_loaded if key.startswith(f"{getattr(model, 'base_model_prefix', '')}."))
    if body:
        raise InputError(
            f"the pretrained weights of transformers:{name} do not fit a network with these settings and channels: "
            f"{', '.join(body[:3])}{', …' if len(body) > 3 else ''}; leave out the settings that differ, or build the "
            "network without pretrained weights"
        )


def _statistics(mean: Any, std: Any) -> Statistics | None:
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        return None
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


ZOOS: dict[str, Zoo] = {"timm": Timm(), "torchvision": Torchvision(), "transformers": Transformers()}
