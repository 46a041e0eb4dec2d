"""Third-party try-on APIs as arms to compare with: one module per API."""
