"""A command that ends with the process that started it: ``python -m bert_emd.cli.child distill …``."""

from __future__ import annotations

import os
import signal
import sys
import threading

from bert_emd.cli.main import main

__all__ = ["follow_parent"]


def follow_parent() -> None:
    """Once standard input closes, which is when its writer ends in whatever way, take it as a Ctrl-C."""

    def watch() -> None:
        # The bare file: a buffered one would be locked by this thread while Python ends.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts what runs in the background with Ctrl-C ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    follow_parent()
    sys.exit(main())
