"""``python -m SpineSegAILib.worker`` is the worker of the panel."""

import sys

from .process import main

sys.exit(main())
