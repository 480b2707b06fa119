"""The engine's thread: its loop, the step, the scheduler, and how they are built."""
