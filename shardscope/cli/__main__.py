"""`python -m shardscope.cli`, the same as `shardscope`."""

import sys

from shardscope.cli import main

sys.exit(main())
