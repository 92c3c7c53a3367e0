"""The dashboard: `streamlit run dashboard/app.py [-- PATH …]`."""
