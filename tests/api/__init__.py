"""The public faces: `import unionfs` and `import layers`."""
