"""Every setting once: its type, default, range, choices and help; files and forms derive from it."""
