"""Reports as people read them: one page with its plots and pictures inside."""
