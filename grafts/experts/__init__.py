"""The graft `experts`: dense models upcycled into a mixture of experts, of attention too where that is wanted."""
