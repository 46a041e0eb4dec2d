"""What `sm4ll demo` tries and shows: bundled pictures, one case per expert, and the page.

Everything under `assets/` is free to redistribute; `assets/ATTRIBUTION.md` says where it is from.
"""
