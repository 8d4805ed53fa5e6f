"""``python -m bert_emd.cli``, which launchers such as ``torchrun -m`` need."""

from __future__ import annotations

import sys

from bert_emd.cli.main import main

sys.exit(main())
