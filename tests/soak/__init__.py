"""Long runs, each a command of its own (`python -m tests.soak`), each with a short version among the tests."""
