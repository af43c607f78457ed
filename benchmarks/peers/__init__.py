"""Adapters that test other federated learning frameworks with fedrift's conformance problems, used as their documentation says.

fedrift does not import these modules. Install a framework to test it.
"""
