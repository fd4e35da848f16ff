"""`python -m lora_ext COMMAND`."""

import sys

from lora_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
