"""The command line: `app` lists the commands, `commands/` has a function for each, the rest is what they print."""
