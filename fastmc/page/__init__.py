"""A page to look at: one HTML file that needs no network and plays clips.

`document.write_page` makes the file of its content, plain values; `motion.pack` makes clips small enough to travel in
it. What a browser does with them is in the folder's JavaScript, which is written as it is run.
"""
