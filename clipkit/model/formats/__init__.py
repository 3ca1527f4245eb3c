"""Files of models: what each format holds, compared and checked; `clipkit.model.checkpoint` is the face."""
