"""Which replica on which GPU with which share: what was measured, against what there is."""
