"""Cut knees out of uncropped radiographs: boxes and sides, files and manifest, contact sheets."""
