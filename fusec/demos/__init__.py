"""Real pretrained models through fusec. Enters: installed packages with weights. Leaves: printed text, files."""
