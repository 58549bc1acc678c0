"""What runs where the engines are: build, store, launch and serve. Imports no other room, so it ships alone."""
