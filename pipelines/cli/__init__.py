"""The command line: one function a command in `app`, what they print in `tables` and `view`."""
