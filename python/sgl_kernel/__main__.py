import sys

from sgl_kernel.cli import main

sys.exit(main())
