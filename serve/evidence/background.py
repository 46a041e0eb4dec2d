"""A thread for work that nobody waits for."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

STEPS_BACK = 4
"""Ray gives its workers a niceness of 15 of at most 19: what is left below theirs, where a thread
gets about two fifths of what one of theirs gets. Any fixed niceness under 15 would put this work
before that which somebody waits for."""
WEAKEST = 19


def open_background_thread(name: str) -> ThreadPoolExecutor:
    """One thread, behind the others of its process wherever processors are short."""
    return ThreadPoolExecutor(1, name, _step_back)


def _step_back() -> None:
    thread = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + STEPS_BACK
    os.setpriority(os.PRIO_PROCESS, thread, min(WEAKEST, niceness))
