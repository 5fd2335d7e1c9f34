"""The work: one folder a family, one stage class a method. See `stages.stage` for the contract."""
