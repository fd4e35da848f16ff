"""The WebUI's install step, at each of its starts: installs what is missing and needed, and nothing else.

Plain LoRA, the tags and the page work with what the WebUI brings, but for a TOML reader on Python 3.10. torch, gradio,
numpy and transformers are the WebUI's own and never touched.
"""

import importlib.util
import sys

if sys.version_info < (3, 11) and importlib.util.find_spec("tomli") is None:
    import launch  # the WebUI's; only now, for it takes longer to import than all of this

    launch.run_pip("install tomli==2.0.1", "tomli for LoRA Workshop")
