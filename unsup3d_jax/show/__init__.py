"""What a person looks at: pictures, meshes, videos."""
