"""Unit tests of the lab: `python3 -m unittest` in tests/lab. They boot nothing and download nothing."""
