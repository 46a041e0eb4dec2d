"""Experts on diffusers pipelines: one engine, and one small recipe per pipeline family."""
