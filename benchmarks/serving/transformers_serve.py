"""``transformers serve`` where torchvision is not installed.

Its processors for images and text insist on a video processor, which needs torchvision. Here they
do without, so that the server can be compared with images too; everything else is its own.
"""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.cli.transformers import main
from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES
from transformers.utils.import_utils import is_torchvision_available

from benchmarks.harness.engine_api import image_only_processor


def load_processor(source: str, **arguments: Any) -> Any:
    """As `AutoProcessor.from_pretrained`; where that fails for want of torchvision, for images
    only.
    """
    try:
        return _original(source, **arguments)
    except (ImportError, ValueError):  # which of them depends on the architecture
        if is_torchvision_available():
            raise
        config = AutoConfig.from_pretrained(source, **arguments)
        own_class = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])
        settings, _ = own_class.get_processor_dict(source, **arguments)
        known = inspect.signature(own_class.__init__).parameters
        settings = {name: value for name, value in settings.items() if name in known}
        return image_only_processor(own_class)(
            AutoImageProcessor.from_pretrained(source, backend="pil", **arguments),
            AutoTokenizer.from_pretrained(source, **arguments),
            **settings,
        )


_original: Any = AutoProcessor.from_pretrained

if __name__ == "__main__":
    processors: Any = AutoProcessor
    processors.from_pretrained = load_processor
    main()
