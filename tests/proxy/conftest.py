from tests.machine import one_thread as one_thread
