"""What all tests need of the process that runs them."""

from __future__ import annotations

import signal

# A shell that starts a job in the background lets it ignore SIGINT, and children inherit that: the
# tests that send Ctrl-C to a child would wait for ever. A handler here is reset to the default there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
