"""Who is who: real processes of real users, against a real core."""
