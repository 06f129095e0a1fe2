"""`python -m gear_dist` is `gear-dist`."""

import sys

from gear_dist.cli.main import main

sys.exit(main())
