"""AKS, and what it stands on: network, Key Vault, Blob Storage with Azure Files or Managed Lustre, identities."""
