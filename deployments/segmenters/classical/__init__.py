"""The classical masker: Haar cascades, GrabCut and proportions; no weights."""
