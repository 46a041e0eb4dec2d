"""What runs the family on a real control plane, for tests/test_kubernetes_e2e.py."""
