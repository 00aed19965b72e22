"""A trained network as a folder, or on the Hugging Face Hub: config.json, model.safetensors, README.md.

It needs huggingface_hub and safetensors (requirements-hub.txt). They are imported when they are used, since that takes
half a second.
"""
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models import connectivity
from models.components import require_named
from models.network import DEFAULT_PARTS, check_normalization
from utils.colour_map import colour_map
from utils.errors import InputError, first_line
from utils.files import explain_write_error, write_atomically

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PARTS = "backbone", *DEFAULT_PARTS
SIZES = "depth", "num_classes"
CARD = """---
{{ card_data }}
---

# SparseMask: {{ summary }}

A network for semantic segmentation, {{ num_classes }} classes, on the encoder {{ backbone }}. Its decoder:

```
{{ connectivity }}
```

`config.json` has the names of the classes, and the mean and standard deviation of RGB in 0..1 that images are
normalized with. To load it, with the program's folder on the path:

```python
from models import SparseMask

network = SparseMask.from_pretrained("THIS FOLDER, OR ITS NAME ON THE HUB")  # image (N, 3, H, W) -> logits
```
"""


def save(network, folder: str | Path, settings: Mapping | None = None, **options) -> str | None:
    """See SparseMask.save_pretrained."""
    hub_folder = import_hub()
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder} is a file; give a folder for the network", about="out")
    if (Path(folder) / CONFIG).exists():
        try:
            model_of(read_config(folder), folder)
        except InputError:
            raise InputError(f"{folder} contains the {CONFIG} of another program, which would be replaced; give "
                             f"another folder", about="out") from None
    text = connectivity.describe(network.connectivity)
    config = {**network.config(), "connectivity": text.splitlines(), "class_names": network.class_names,
              "palette": colour_map()[:network.num_classes].tolist(), "settings": dict(settings or {})}
    card = {"summary": connectivity.summary(network.connectivity), "num_classes": network.num_classes,
            "backbone": network.parts["backbone"], "connectivity": text}
    options["model_card_kwargs"] = {**card, **(options.get("model_card_kwargs") or {})}
    with explain_write_error(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    return hub_folder(network).save_pretrained(folder, config=config, **options)


def load(network_class: type, name: str | Path, given: Mapping[str, str | None], options: Mapping[str, Any]):
    """See SparseMask.from_pretrained."""
    config, state = import_hub().from_pretrained(str(name), **options)
    model = model_of(config, name)
    for kind in PARTS:
        require_named(str(name), kind, model[kind], given.get(kind))
        if given.get(kind) not in (None, model[kind]):
            raise InputError(f"{name} has the {kind} {model[kind]}, but {given[kind]} was given; leave it out",
                             about=kind)
    network = network_class(**{**model, "connectivity": model["connectivity"].numpy()})
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights in {name} are not those of its {CONFIG} ({first_line(error)}); give a whole "
                         f"folder") from None
    network.class_names = config.get("class_names")
    return network.eval()


def model_of(config: Mapping, name: str | Path) -> dict:
    """What a config says of the network, checked, as SparseMask's arguments; the connectivity is a bool tensor.

    name: of the folder, for the InputError.
    """
    try:
        model = {**{key: config[key] for key in (*PARTS, *SIZES)},
                 "normalization": list(map(list, check_normalization(config["normalization"]))),
                 "connectivity": torch.from_numpy(connectivity.parse("\n".join(config["connectivity"])))}
        names = config.get("class_names")
        checks = {**{key: isinstance(model[key], str) for key in PARTS},
                  **{key: type(model[key]) is int for key in SIZES},
                  "class_names": names is None or isinstance(names, list) and len(names) == model["num_classes"]
                  and all(isinstance(text, str) for text in names)}
        wrong = [key for key, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"its {wrong[0]} is {str(config.get(wrong[0]))[:60]}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # InputError among them
        what = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{Path(name) / CONFIG} does not describe a network of this program ({what}); give a folder "
                         f"that save_pretrained wrote") from None
    return model


def read_config(folder: str | Path) -> dict:
    """The config of a local folder, a dict. Raises InputError if it is none."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); give a folder that save_pretrained wrote"
                         ) from None
    if not isinstance(config, dict):
        raise InputError(f"{path} contains a {type(config).__name__}; give a folder that save_pretrained wrote")
    return config


@functools.lru_cache(maxsize=1)
def import_hub() -> type:
    """huggingface_hub's mixin for our networks: HubFolder(network).save_pretrained(folder), and
    HubFolder.from_pretrained(name) -> (config, state dict).

    It holds a network instead of being one, so that only who saves or loads needs the packages. Raises InputError
    where they are not installed.
    """
    try:
        import safetensors.torch
        from huggingface_hub import ModelHubMixin, hf_hub_download
    except ImportError as error:
        raise InputError(f"this needs packages that are not installed ({error}); pip install huggingface_hub "
                         f"safetensors", about="out") from None

    class HubFolder(ModelHubMixin, library_name="sparsemask", pipeline_tag="image-segmentation",
                    tags=["image-segmentation", "sparsemask"], model_card_template=CARD):
        def __init__(self, network):
            self.network = network

        def _save_pretrained(self, save_directory: Path) -> None:
            # copies, since the format has no tensors that share memory
            state = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                     for name, tensor in self.network.state_dict().items()}
            with write_atomically(save_directory / WEIGHTS) as temporary:
                safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})

        @classmethod
        def from_pretrained(cls, name: str, **options) -> tuple[dict, dict]:
            """config and state dict; options: of hf_hub_download."""
            files = [Path(name) / file if Path(name).is_dir() else cls.download(name, file, options)
                     for file in (CONFIG, WEIGHTS)]
            config = read_config(files[0].parent)
            try:
                return config, safetensors.torch.load_file(files[1])
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                raise InputError(f"{files[1]} cannot be read ({first_line(error)}); give a whole file") from None

        @staticmethod
        def download(name: str, file: str, options: Mapping[str, Any]) -> Path:
            try:
                return Path(hf_hub_download(name, file, **options))
            except (OSError, ValueError) as error:  # the hub's own errors are of these classes, as the network's are
                raise InputError(f"{name} is no folder here, and {file} of a network of that name cannot be downloaded "
                                 f"({first_line(error)}); check the name and the network") from None

    return HubFolder
