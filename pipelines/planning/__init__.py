"""What a run would do, and why: keys, fingerprints of code, reasons, selection, checks before any compute."""
