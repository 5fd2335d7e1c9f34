"""Where agents act: tasks, tools, episodes, and the research environment over a collection of documents."""
