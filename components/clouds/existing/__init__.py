"""A cluster that is there already: its kubeconfig, and one volume of its storage class."""
