"""The commands, a module a purpose. Each reads its arguments and calls one function; nothing here knows how."""
